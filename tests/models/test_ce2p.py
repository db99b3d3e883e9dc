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


class TestCE2POCRNet(TestCE2PAspOCRNet):
    name = "ce2p_ocrnet"
    compiler = "eager"  # the layers are those of other networks, which go through AOT


class TestCE2PBaseOCNet(TestCE2PAspOCRNet):
    name = "ce2p_base_ocnet"
    compiler = "eager"  # the layers are those of other networks, which go through AOT


class TestCE2PAspOCNet(TestCE2PAspOCRNet):
    name = "ce2p_asp_ocnet"
    compiler = "eager"  # the layers are those of other networks, which go through AOT


def test_equals_the_published_network():
    assert_equals_golden(
        "ce2p_asp_ocrnet_r101",
        ("seg", "edge", "aux", "main"),
        name="ce2p_asp_ocrnet",
        num_classes=20,
    )


def test_parameters():
    assert parameters(name="ce2p_asp_ocrnet", num_classes=20) == 68_605_932


def test_the_others_exchange_the_context_alone():
    """They were never published: 3×3 and BaseOC, 3×3 and ASP-OC, and OCR on the last map itself."""
    rest = 68_605_932 - context_parameters("ce2p_asp_ocrnet")
    # In their order: what the same blocks have in base_ocnet_v2 and asp_ocnet; OCR by hand.
    ocr = 2 * (2048 * 256 + 256 * 256) + 2 * 2048 * 256 + 4 * 3 * 256 + 3 * 256 + 3 * 2048
    ocr += 2 * 2048 * 512 + 3 * 512
    known = {
        "ce2p_base_ocnet": 9_438_720 + 1_185_024,
        "ce2p_asp_ocnet": 62_477_414 - 42_623_936 - 4_729_856 - (19 + 19) - 19 * 512,
        "ce2p_ocrnet": ocr,
    }
    for name, count in known.items():
        assert context_parameters(name) == count, name
        assert parameters(name=name, num_classes=20) == rest + count, name


def context_parameters(name):
    with torch.device("meta"):
        context = create_model(name, num_classes=20).context
    return sum(p.numel() for p in context.parameters())


def test_backbone_of_one_map_is_refused():
    with pytest.raises(ValueError, match="four maps"):
        create_model("ce2p_ocrnet", backbone="hrnet_w18")
