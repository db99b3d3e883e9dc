# SPDX-License-Identifier: MIT
import pytest
import torch

from openseg import create_model
from tests.golden_files import assert_equals_golden, parameters
from tests.models.contract import ModelContract


class TestBaseOCNet(ModelContract):
    name = "base_ocnet"


class TestBaseOCNetV2(ModelContract):
    name = "base_ocnet_v2"


class TestAspOCNet(ModelContract):
    name = "asp_ocnet"


def test_equals_the_original_whose_norms_are_inplace_abn():
    assert_equals_golden("base_ocnet_r101", ("aux", "main"), name="base_ocnet")


def test_v2_equals_the_published_network():
    assert_equals_golden("base_ocnet_v2_r101", ("aux", "main"), name="base_ocnet_v2")


def test_parameters():
    assert parameters(name="base_ocnet_v2") == 57_987_302
    assert parameters(name="asp_ocnet") == 62_477_414


def test_the_original_has_one_convolution_where_v2_has_four():
    conv, norm = 512 * 256 + 256, 2 * 256
    second = 256 * 256 + 256
    difference = 2 * (conv + norm + second + norm) - (conv + norm)
    assert parameters(name="base_ocnet") == 57_987_302 - difference


@pytest.mark.parametrize("name", ["base_ocnet", "base_ocnet_v2"])
def test_a_fresh_network_has_no_context(name):
    """The projection of the context starts at zero, and its gradient does not stay there."""
    model = create_model(name, backbone="resnet18c", num_classes=5)
    attention = model.context.attention
    x = torch.randn(2, 512, 9, 9)
    assert not attention(x).any()
    attention(x).sum().backward()
    assert attention.project.weight.grad.abs().sum() > 0
