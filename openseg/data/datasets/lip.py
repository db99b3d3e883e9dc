# SPDX-License-Identifier: MIT
"""LIP, "look into person": 19 parts of a body and of its clothes, and the background, which counts.

Left and right parts are classes of their own, so a mirrored image exchanges them.
"""

from pathlib import Path
from typing import Any

from openseg.data import palettes
from openseg.data.base import DatasetInfo
from openseg.data.datasets.listing import (
    IMAGE_SUFFIXES,
    Listing,
    list_files,
    match_folders,
    without_labels,
)
from openseg.data.datasets.published import PublishedDataset

INFO = DatasetInfo(
    "lip",
    (
        *("background", "hat", "hair", "glove", "sunglasses", "upper clothes", "dress", "coat"),
        *("socks", "pants", "jumpsuits", "scarf", "skirt", "face", "left arm", "right arm"),
        *("left leg", "right leg", "left shoe", "right shoe"),
    ),
    palettes.voc(20),
    flip_pairs=((14, 15), (16, 17), (18, 19)),
    label_ids=tuple(range(20)),
)
_IMAGES = {
    "train": "TrainVal_images/train_images",
    "val": "TrainVal_images/val_images",
    "test": "Testing_images/testing_images",
}
_LABELS = {
    "train": "TrainVal_parsing_annotations/train_segmentations",
    "val": "TrainVal_parsing_annotations/val_segmentations",
}


class LIP(PublishedDataset):
    """Gong et al., "Look into person: self-supervised structure-sensitive learning and a new
    benchmark for human parsing", CVPR 2017.

    root holds `TrainVal_images/{train,val}_images/NAME.jpg` and
    `TrainVal_parsing_annotations/{train,val}_segmentations/NAME.png`; the upper folders may stand
    twice, one in the other, as some archives have them. Splits are train, val and test (no labels,
    from Testing_images/testing_images).
    """

    def __init__(self, root: str | Path, split: str, **options: Any) -> None:
        super().__init__(root, split, INFO, (255,), **options)

    def list_original(self, split: str) -> Listing:
        if split not in _IMAGES:
            raise self._unknown_split(split, _IMAGES)
        images = self._find(_IMAGES[split])
        if split == "test":
            return without_labels(list_files(images, IMAGE_SUFFIXES))
        return match_folders(images, self._find(_LABELS[split]))

    def _find(self, folder: str) -> Path:
        twice = self.root / folder.partition("/")[0] / folder
        return twice if twice.is_dir() else self.root / folder
