# SPDX-License-Identifier: MIT
import torch

from openseg import create_model
from tests.golden_files import assert_equals_golden, parameters
from tests.models.contract import ModelContract


class TestOCRNet(ModelContract):
    name = "ocrnet"


def test_equals_the_published_network():
    assert_equals_golden("ocrnet_r101", ("aux", "main"), name="ocrnet")


def test_on_hrnet_equals_the_published_network():
    arguments = {"name": "ocrnet", "backbone": "hrnet_w48"}
    assert_equals_golden("hrnet_w48_ocr", ("aux", "main"), **arguments)


def test_on_hrnet_equals_the_network_of_its_authors():
    arguments = {"name": "ocrnet", "backbone": "hrnet_w48", "variant": "hrnet"}
    assert_equals_golden("hrnet_w48_ocr_hrnetrepo", ("aux", "main"), **arguments)


class TestAspOCRNet(ModelContract):
    name = "asp_ocrnet"


def test_parameters():
    assert parameters(name="ocrnet") == 57_988_838
    assert parameters(name="asp_ocrnet") == 67_256_166
    assert parameters(name="asp_ocrnet", variant="wide") == 68_478_950
    hrnet = {"backbone": "hrnet_w48"}
    assert parameters(name="ocrnet", **hrnet) == 74_522_182
    assert parameters(name="ocrnet", variant="b", **hrnet) == 68_952_550
    assert parameters(name="asp_ocrnet", **hrnet) == 75_977_664


def test_the_main_loss_reaches_the_auxiliary_head():
    model = create_model("ocrnet", backbone="resnet18c", num_classes=5)
    model(torch.randn(2, 3, 65, 65)).main.sum().backward()
    assert model.aux_head.classifier.weight.grad.abs().sum() > 0


class TestIdealOCRNet(ModelContract):
    name = "ideal_ocrnet"
    unused = ("context.query.", "context.key.")


def test_ideal_network_takes_the_weights_of_ocrnet():
    with torch.device("meta"):
        state_dict = create_model("ocrnet", "resnet18c").state_dict()
        ideal = create_model("ideal_ocrnet", "resnet18c").state_dict()
    assert {k: v.shape for k, v in ideal.items()} == {k: v.shape for k, v in state_dict.items()}
    with_background = parameters(name="ideal_ocrnet", variant="background")
    assert with_background == 57_988_838 + 512 * 512
