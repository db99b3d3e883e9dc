# SPDX-License-Identifier: MIT
import pytest
import torch

from openseg.build import build_criterion, build_model, build_normalize, build_optimizer
from openseg.config import load_config
from openseg.data import ContextScenes
from openseg.ops import Ohem
from openseg.weights import CONVENTIONS


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


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_head_and_backbone_are_groups_of_either_optimizer(name, kind):
    words = [f"train.optimizer={name}", "train.lr=0.01", "train.head_lr_factor=10"]
    config = load_config("scenes/fcn_r18", words)
    model, _ = build_model(config, 4)
    optimizer = build_optimizer(config, model)
    assert type(optimizer) is kind
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert groups["backbone"]["base_lr"] == 0.01
    assert groups["head"]["base_lr"] == 0.1
    assert {id(p) for p in groups["backbone"]["params"]} == {
        id(p) for p in model.backbone.parameters()
    }
    counts = [len(group["params"]) for group in groups.values()]
    assert sum(counts) == len(list(model.parameters()))


def test_weights_for_images_normalised_otherwise_are_reported(tmp_path):
    config = load_config("scenes/fcn_r18", [f"model.weights={tmp_path / 'best.pt'}"])
    model, _ = build_model(load_config("scenes/fcn_r18", []), 4)
    meta = {"normalize": CONVENTIONS["caffe"].to_dict()}
    content = {"format": "openseg", "state_dict": model.state_dict(), "ema": None, "meta": meta}
    torch.save(content, tmp_path / "best.pt")
    _, report = build_model(config, 4)
    assert report.normalize == CONVENTIONS["caffe"]
    assert "warning: data.mean, std, divisor and channel_order say Normalize(" in str(report)
    meta["normalize"] = build_normalize(config).to_dict()
    torch.save(content, tmp_path / "best.pt")
    assert build_model(config, 4)[1].warnings == []
