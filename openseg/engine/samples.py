# SPDX-License-Identifier: MIT
"""Pictures of some images: what a network makes of them, and what augmentation does."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from openseg.data import Dataset, TrainSet, TrainTransform, drawing
from openseg.data.first_look import spread
from openseg.engine.files import replacing
from openseg.engine.inference import Inference

_CELL = 480  # largest side of a picture of an augmented image


def draw_samples(
    infer: Inference, dataset: Dataset, transform: Any, count: int, picture: Path
) -> None:
    """Draw `count` images spread over the data set: image, label, prediction and confidence.

    transform: sample -> (image float32 [C, H, W], label), as for `evaluate`.
    """
    palette = dataset.info.palette
    rows = []
    for index in spread(len(dataset), count):
        sample = dataset.load(index)
        image, label = transform(sample)
        size = sample.image.shape[:2]
        prediction, confidence = infer(torch.as_tensor(image), size=size, confidence=True)
        rows.append(
            [
                sample.image,
                drawing.overlay(sample.image, label, palette),
                drawing.overlay(sample.image, prediction.cpu().numpy(), palette),
                drawing.confidence_image(confidence.cpu().numpy()),
            ]
        )
    captions = ["image", "label", "prediction", "confidence"]
    _save_sheet(rows, captions, dataset, picture)


def draw_augmented(
    dataset: Dataset, transform: TrainTransform, seed: int, count: int, picture: Path
) -> None:
    """Draw `count` images spread over the data set, each with two of its augmented forms."""
    palette, train_set = dataset.info.palette, TrainSet(dataset, transform, seed)
    side = min(_CELL, max(transform.crop_size))
    rows = []
    for index in spread(len(dataset), count):
        sample = dataset.load(index)
        assert sample.label is not None  # augmenting it would fail
        row = [drawing.overlay(sample.image, sample.label, palette)]
        for epoch in range(2):
            image, label = (tensor.numpy() for tensor in train_set[epoch, index].values())
            pixels = transform.normalize.undo(image)
            row += [pixels, drawing.overlay(pixels, label, palette)]
        rows.append([_shrunk(cell, side) for cell in row])
    captions = ["label", "augmented", "its label", "another", "its label"]
    _save_sheet(rows, captions, dataset, picture)


def _shrunk(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 [H, W, 3], made smaller where one of its sides is longer than `side`."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    return np.asarray(picture)


def _save_sheet(
    rows: list[list[np.ndarray]], captions: list[str], dataset: Dataset, picture: Path
) -> None:
    legend = drawing.legend(dataset.info.classes, dataset.info.palette)
    sheet = drawing.contact_sheet(rows, captions, legend)
    with replacing(picture) as temporary:
        Image.fromarray(sheet).save(temporary)
