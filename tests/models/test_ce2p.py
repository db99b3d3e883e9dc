# SPDX-License-Identifier: MIT
import pytest
import torch

from openseg import create_model
from tests.golden_files import assert_equals_golden, parameters
from tests.models.contract import ModelContract


class TestCE2PAspOCRNet(ModelContract):
    name = "ce2p_asp_ocrnet"
    stride = 4
    aux_weights = {"seg": 1.0, "edge": 1.0, "aux": 0.4}  # noqa: RUF012 - never changed


def test_equals_the_published_network():
    assert_equals_golden(
        "ce2p_asp_ocrnet_r101",
        ("seg", "edge", "aux", "main"),
        name="ce2p_asp_ocrnet",
        num_classes=20,
    )


def test_parameters():
    assert parameters(name="ce2p_asp_ocrnet", num_classes=20) == 68_605_932


@pytest.mark.parametrize(
    "name", ["ce2p_base_ocnet", "ce2p_asp_ocnet", "ce2p_ocrnet", "ce2p_asp_ocrnet"]
)
def test_every_output_and_gradient(name):
    torch.manual_seed(0)
    model = create_model(name, backbone="resnet18c", num_classes=5)
    output = model(torch.randn(2, 3, 65, 49))
    assert output.main.shape == output.aux["seg"].shape == (2, 5, 17, 13)
    assert output.aux["edge"].shape == (2, 2, 17, 13)
    assert output.aux["aux"].shape == (2, 5, 5, 4)
    sum(logits.square().mean() for logits in (output.main, *output.aux.values())).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key


def test_backbone_of_one_map_is_refused():
    with pytest.raises(ValueError, match="four maps"):
        create_model("ce2p_ocrnet", backbone="hrnet_w18")
