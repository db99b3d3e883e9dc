# SPDX-License-Identifier: MIT
import torch

from openseg import create_model
from tests.golden_files import assert_equals_golden, parameters
from tests.models.contract import ModelContract


class TestOCRNet(ModelContract):
    name = "ocrnet"


def test_equals_the_published_network():
    assert_equals_golden("ocrnet_r101", ("aux", "main"), name="ocrnet")


class TestAspOCRNet(ModelContract):
    name = "asp_ocrnet"


def test_parameters():
    assert parameters(name="ocrnet") == 57_988_838
    assert parameters(name="asp_ocrnet") == 67_256_166
    assert parameters(name="asp_ocrnet", variant="wide") == 68_478_950


def test_the_main_loss_reaches_the_auxiliary_head():
    model = create_model("ocrnet", backbone="resnet18c", num_classes=5)
    model(torch.randn(2, 3, 65, 65)).main.sum().backward()
    assert model.aux_head.classifier.weight.grad.abs().sum() > 0
