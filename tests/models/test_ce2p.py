# SPDX-License-Identifier: MIT
import pytest

from openseg import create_model
from tests.golden_files import assert_equals_golden, parameters
from tests.models.contract import ModelContract


class TestCE2PAspOCRNet(ModelContract):
    name = "ce2p_asp_ocrnet"
    stride = 4
    aux_weights = {"seg": 1.0, "edge": 1.0, "aux": 0.4}  # noqa: RUF012 - never changed


class TestCE2POCRNet(TestCE2PAspOCRNet):
    name = "ce2p_ocrnet"
    traced_elsewhere = "the context by ocrnet, the rest by ce2p_asp_ocrnet"


class TestCE2PBaseOCNet(TestCE2PAspOCRNet):
    name = "ce2p_base_ocnet"
    traced_elsewhere = "the context by base_ocnet_v2, the rest by ce2p_asp_ocrnet"


class TestCE2PAspOCNet(TestCE2PAspOCRNet):
    name = "ce2p_asp_ocnet"
    traced_elsewhere = "the context by asp_ocnet, the rest by ce2p_asp_ocrnet"


def test_equals_the_published_network():
    assert_equals_golden(
        "ce2p_asp_ocrnet_r101",
        ("seg", "edge", "aux", "main"),
        name="ce2p_asp_ocrnet",
        num_classes=20,
    )


def test_parameters():
    assert parameters(name="ce2p_asp_ocrnet", num_classes=20) == 68_605_932


def test_backbone_of_one_map_is_refused():
    with pytest.raises(ValueError, match="four maps"):
        create_model("ce2p_ocrnet", backbone="hrnet_w18")
