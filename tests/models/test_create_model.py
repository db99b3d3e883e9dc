# SPDX-License-Identifier: MIT
import importlib
from pathlib import Path

import pytest
import torch

import openseg
from openseg.layers import ConvNormAct
from openseg.models import _MODELS
from tests.models.contract import ModelContract


@pytest.mark.parametrize(
    ("name", "variant"),
    [(name, variant) for name, network in _MODELS.items() for variant in network.variants],
)
def test_every_form_of_every_network_runs_and_is_rebuilt_from_its_arguments(name, variant):
    with torch.device("meta"):
        model = openseg.create_model(name, backbone="resnet18c", num_classes=7, variant=variant)
        again = openseg.create_model(**model.arguments)
        labels = [torch.zeros(2, 65, 33, dtype=torch.int64)] if again.needs_labels else []
        output = again(torch.empty(2, 3, 65, 33), *labels)
    assert again.arguments == model.arguments
    assert output.main.shape[:2] == (2, 2 if name == "segfix" else 7)


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("FCN-Stride8", "fcn"),
        ("PSPNet", "pspnet"),
        ("DeepLabV3", "deeplabv3"),
        ("BaseOCNet", "base_ocnet"),
        ("BaseOCNet-v2", "base_ocnet_v2"),
        ("AspOCNet", "asp_ocnet"),
        ("FastBaseOCNet", "ocrnet"),
        ("OCRNet", "ocrnet"),
        ("FastAspOCNet", "asp_ocrnet"),
        ("Sparse OCNet", "isanet"),
    ],
)
def test_names_of_the_tables(alias, name):
    with torch.device("meta"):
        model = openseg.create_model(alias, backbone="resnet18")
    assert model.arguments["name"] == name


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(ValueError, match="did you mean ocrnet"):
        openseg.create_model("orcnet")
    with pytest.raises(ValueError, match="resnet101c"):
        openseg.create_model("fcn", backbone="resnet102c")
    with pytest.raises(ValueError, match="unknown backbone None; did you mean resnet18"):
        openseg.create_model("fcn", backbone=None)
    with pytest.raises(ValueError, match="unknown model 3; did you mean"):
        openseg.create_model(3)
    with pytest.raises(ValueError, match="openseg"):
        openseg.create_model("fcn", backbone="resnet18", variant="new")
    with pytest.raises(ValueError, match="gelu"):
        openseg.create_model("fcn", backbone="resnet18", activation="gelu")


@pytest.mark.parametrize("value", [0, -1, 1.5, "19"])
@pytest.mark.parametrize("option", ["num_classes", "in_channels"])
def test_counts_are_positive_integers(option, value):
    with pytest.raises(
        ValueError, match=rf"{option} must be an integer, 1 at least, got {value!r}"
    ):
        openseg.create_model("fcn", "resnet18", **{option: value})


def test_the_activation_is_that_of_all_heads_and_is_kept_in_the_arguments():
    model = openseg.create_model("ocrnet", backbone="resnet18", activation="leaky_relu")
    heads = [module for module in model.modules() if isinstance(module, ConvNormAct)]
    assert heads
    assert {module.activation.negative_slope for module in heads} == {0.01}
    assert model.arguments["activation"] == "leaky_relu"


def test_every_network_inherits_the_contract():
    for path in Path(__file__).parent.glob("test_*.py"):
        importlib.import_module(f"tests.models.{path.stem}")
    classes, names = [ModelContract], set()
    while classes:
        found = classes.pop().__subclasses__()
        names |= {test.name for test in found}
        classes += found
    assert names == set(openseg.list_models())
