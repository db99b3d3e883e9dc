# SPDX-License-Identifier: MIT
"""Pictures of what a network makes of some images, beside what it should."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from openseg.data import Dataset, drawing
from openseg.engine.files import replacing
from openseg.engine.inference import Inference


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
    sheet = drawing.contact_sheet(rows, captions, drawing.legend(dataset.info.classes, palette))
    with replacing(picture) as temporary:
        Image.fromarray(sheet).save(temporary)


def spread(length: int, count: int) -> list[int]:
    """At most `count` indices below `length`, evenly spaced from the first to the last."""
    places = np.linspace(0, length - 1, min(count, length))
    return [int(place) for place in places.round()]
