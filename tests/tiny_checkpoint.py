# SPDX-License-Identifier: MIT
"""A checkpoint of a small network with random weights, for tests of the entry points."""

from pathlib import Path

import torch

from openseg.config import load_config
from openseg.config.loading import to_plain
from openseg.data import ContextScenes, Normalize
from openseg.engine.checkpoints import save_checkpoint
from openseg.models import SegmentationModel, create_model

SIZE = (48, 64)
NORMALIZE = Normalize(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), channel_order="BGR")


def scenes() -> ContextScenes:
    """The validation images of the run that the checkpoint belongs to."""
    return ContextScenes(SIZE, 3, split="val")


def write_checkpoint(path: Path) -> SegmentationModel:
    """Save a network for the classes of `scenes` and return it in eval mode."""
    torch.manual_seed(0)
    info = scenes().info
    model = create_model("fcn", "resnet18", info.num_classes, output_stride=16)
    data = [f"data.scene_size={list(SIZE)}", "data.scene_val_length=3", "data.workers=0"]
    config = load_config("scenes/demo", [*data, "device=cpu"])
    meta = {
        "classes": list(info.classes),
        "palette": [list(color) for color in info.palette],
        "normalize": NORMALIZE.to_dict(),
        "ignore_index": 255,
        "dataset": info.name,
    }
    checkpoint = {
        "model": model.arguments,
        "state_dict": model.state_dict(),
        "ema": None,
        "meta": meta,
        "training": None,
        "config": to_plain(config),
        "metrics": {},
    }
    save_checkpoint(path, checkpoint)
    return model.eval()
