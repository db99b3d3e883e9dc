# SPDX-License-Identifier: MIT
import pytest

from openseg.build import build_criterion, build_model
from openseg.config import load_config
from openseg.data import ContextScenes
from openseg.ops import Ohem


@pytest.mark.parametrize(
    ("overrides", "main", "aux"),
    [
        ([], None, None),
        (["loss.ohem_thresh=0.9"], Ohem(0.9, 100_000, "openseg"), None),
        (
            ["loss.ohem_thresh=0.7", "loss.ohem_variant=ocnet", "loss.ohem_aux=true"],
            Ohem(0.7, 100_000, "ocnet"),
            Ohem(0.7, 100_000, "ocnet"),
        ),
    ],
)
def test_hard_example_mining_is_off_unless_asked_for(overrides, main, aux):
    config = load_config("scenes/ocrnet_r18", overrides)
    info = ContextScenes((32, 32), 1).info
    model, _ = build_model(config, info.num_classes)
    criterion = build_criterion(config, model, info)
    assert criterion.ohem == main
    assert criterion.ohem_aux == aux
