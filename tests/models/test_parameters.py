# SPDX-License-Identifier: MIT
"""Published numbers of parameters of the parts; those of whole networks are tested beside them."""

import pytest
import torch

from openseg import create_model
from openseg.layers import ObjectContext


@pytest.mark.parametrize(
    ("name", "parts", "count"),
    [
        ("fcn", ["head"], 9_448_448),
        ("fcn", ["aux_head"], 4_729_856),
        ("pspnet", ["context"], 23_073_792),
        ("deeplabv3", ["context", "classifier"], 15_539_987),
        ("base_ocnet_v2", ["reduce"], 9_438_720),
        ("base_ocnet_v2", ["context"], 1_185_024),
        ("ocrnet", ["context"], 1_186_560),
        ("isanet", ["reduce", "context"], 11_804_672),
    ],
)
def test_parts(name, parts, count):
    with torch.device("meta"):
        model = create_model(name, num_classes=19)
    modules = [model.get_submodule(part) for part in parts]
    assert sum(p.numel() for module in modules for p in module.parameters()) == count


def test_the_oldest_object_context_has_no_bias_around_the_sum():
    with torch.device("meta"):
        block = ObjectContext(512, 256, 512, value_bias=False)
    # of a network of 57,988,070 parameters where ours has 57,988,838
    known = 1_186_560 - (57_988_838 - 57_988_070)
    assert sum(p.numel() for p in block.parameters()) == known


def test_heads_of_hrnet_in_the_code_of_its_authors():
    """The 3×3 of ours is a 1×1 there, in the auxiliary head of OCR too."""
    with torch.device("meta"):
        plain = create_model("hrnet", "hrnet_w48", variant="hrnet")
        ocr = create_model("ocrnet", "hrnet_w48", variant="hrnet")
    one = 720 * 720 + 720 + 2 * 720 + 19 * 720 + 19  # 1×1 with bias, norm, classifier
    assert sum(p.numel() for p in plain.head.parameters()) == one
    assert sum(p.numel() for p in ocr.aux_head.parameters()) == one
