# SPDX-License-Identifier: MIT
"""Cityscapes: 5000 street scenes with fine labels, 2048×1024, and 19,998 more with coarse ones.

Labels are read from the labelIds files, never from labelTrainIds.
"""

from pathlib import Path
from typing import Any

import numpy as np

from openseg.data import palettes
from openseg.data.base import DatasetInfo
from openseg.data.datasets.listing import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    Listing,
    list_files,
    match,
    require_files,
    without_labels,
)
from openseg.data.datasets.paired import open_label
from openseg.data.datasets.published import PublishedDataset

INFO = DatasetInfo(
    "cityscapes",
    (
        *("road", "sidewalk", "building", "wall", "fence", "pole", "traffic light"),
        *("traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
        *("truck", "bus", "train", "motorcycle", "bicycle"),
    ),
    palettes.CITYSCAPES,
    label_ids=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
)
_IGNORED = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30, 255)  # 255 is -1, licence plates
_LABELS = {  # split: (images, labels)
    "train": ("train", "gtFine"),
    "val": ("val", "gtFine"),
    "coarse": ("train_extra", "gtCoarse"),
    "train_coarse": ("train", "gtCoarse"),
    "val_coarse": ("val", "gtCoarse"),
}


class Cityscapes(PublishedDataset):
    """Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016.

    root holds `leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png` and, as they are published,
    `gtFine/…/NAME_gtFine_labelIds.png` and `gtCoarse/…`. Splits are train, val and test (no
    labels), coarse (the images of train_extra), train_coarse and val_coarse. Instances, where they
    are asked for, are `…_instanceIds.png` beside the labels, or `root/SPLIT/instance/NAME.png`.
    """

    def __init__(self, root: str | Path, split: str, **options: Any) -> None:
        super().__init__(root, split, INFO, _IGNORED, **options)

    def list_original(self, split: str) -> Listing:
        if split not in (*_LABELS, "test"):
            raise self._unknown_split(split, (*_LABELS, "test"))
        folder, kind = _LABELS.get(split, ("test", ""))
        image_folder = self.root / "leftImg8bit" / folder
        endings = "_leftImg8bit", f"_{kind}_labelIds"
        images = list_files(image_folder, IMAGE_SUFFIXES, endings[0])
        if split == "test":
            return without_labels(images)
        label_folder = self.root / kind / folder
        labels = list_files(label_folder, LABEL_SUFFIXES, endings[1])
        found = match(images, labels, image_folder, label_folder, endings=endings)
        return found._replace(pairs=[p._replace(name=p.image.stem) for p in found.pairs])

    def load_instances(self, index: int) -> np.ndarray:
        """The instanceIds of a labelled image, uint16 [H, W]: 1000 · its label id + a number for a
        thing that can be told from the next one, else the label id.

        Raises DataError where the file cannot be read.
        """
        return open_label(self._instance_file(index))

    def require_instances(self) -> None:
        """DataError where a file of instances is missing."""
        require_files(map(self._instance_file, range(len(self))))

    def _instance_file(self, index: int) -> Path:
        label = self.listing.pairs[index].label
        assert label is not None
        kind, found, suffix = label.name.partition("_labelIds")
        if not found:  # as openseg.pytorch prepares it
            return label.parents[1] / "instance" / label.name
        return label.with_name(f"{kind}_instanceIds{suffix}")
