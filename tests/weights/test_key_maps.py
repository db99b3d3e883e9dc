# SPDX-License-Identifier: MIT
import pytest
import torch

from openseg import create_model
from openseg.weights.key_maps import OPENSEG_PYTORCH, key_maps

HRNET = {"backbone": "hrnet_w18"}
CASES = [("openseg.pytorch", {"name": name}) for name in OPENSEG_PYTORCH if name != "hrnet"]
CASES += [
    ("openseg.pytorch", {"name": name, **HRNET}) for name in ("hrnet", "ocrnet", "asp_ocrnet")
]
CASES += [
    ("openseg.pytorch", {"name": "ocrnet", "variant": "b", **HRNET}),
    ("openseg.pytorch", {"name": "ocrnet", "backbone": "wide_resnet38"}),
    ("ocnet.pytorch", {"name": "base_ocnet"}),
    ("ocnet.pytorch", {"name": "asp_ocnet", "variant": "ocnet"}),
    ("hrnet", {"name": "hrnet", "variant": "hrnet", **HRNET}),
    ("hrnet", {"name": "ocrnet", "variant": "hrnet", **HRNET}),
]


@pytest.mark.parametrize(("source", "arguments"), CASES)
def test_every_layer_of_the_heads_has_a_published_name(source, arguments):
    with torch.device("meta"):
        model = create_model(**({"backbone": "resnet18c"} | arguments))
    (names,) = (n for n in key_maps(arguments["name"]) if n.source == source)
    modules = {key.rpartition(".")[0] for key in model.state_dict()}
    heads = {module for module in modules if not module.startswith("backbone.")}
    assert heads - set(names.names.values()) == set()


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.resinit.bn1", "backbone.stem.bn1"),
        ("backbone.layer1.0.downsample.1", "backbone.layer1.0.downsample.1"),
        ("conv_3x3.0", "reduce.conv"),
        ("conv_3x3.1", "reduce.norm"),  # InPlaceABN
        ("conv_3x3.1.0", "reduce.norm"),  # Sequential(norm, ReLU)
        ("conv_3x3.0.0", None),
        ("spatial_ocr_head.object_context_block.f_object.2", "context.key.1.conv"),
        ("spatial_ocr_head.object_context_block.f_object.3.0", "context.key.1.norm"),
        ("somewhere.else", None),
    ],
)
def test_names_of_ocrnet(theirs, ours):
    (names,) = (n for n in key_maps("ocrnet") if n.source == "openseg.pytorch")
    assert names.module(theirs) == ours
