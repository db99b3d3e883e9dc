# SPDX-License-Identifier: MIT
"""Pascal-Context: the 59 most frequent of its classes, with or without the background as a 60th.

Value 0 of a file is the background; value v is the v-th class in alphabetical order.
"""

import dataclasses
from pathlib import Path
from typing import Any

from openseg.data import palettes
from openseg.data.base import DatasetInfo
from openseg.data.datasets.listing import Listing, match_folders, read_names
from openseg.data.datasets.published import PublishedDataset

_CLASSES = (
    *("aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book"),
    *("bottle", "building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth"),
    *("computer", "cow", "cup", "curtain", "dog", "door", "fence", "floor", "flower", "food"),
    *("grass", "ground", "horse", "keyboard", "light", "motorbike", "mountain", "mouse"),
    *("person", "plate", "platform", "potted plant", "road", "rock", "sheep", "shelves"),
    *("sidewalk", "sign", "sky", "snow", "sofa", "table", "track", "train", "tree", "truck"),
    *("tv monitor", "wall", "water", "window", "wood"),
)
INFO = DatasetInfo("pascal_context", _CLASSES, palettes.voc(60)[1:], label_ids=tuple(range(1, 60)))
INFO_WITH_BACKGROUND = dataclasses.replace(
    INFO,
    classes=("background", *_CLASSES),
    palette=palettes.voc(60),
    label_ids=tuple(range(60)),
)


class PascalContext(PublishedDataset):
    """Mottaghi et al., "The role of context for object detection and semantic segmentation in the
    wild", CVPR 2014.

    root is VOC2010, with `JPEGImages/NAME.jpg`, `SegmentationClassContext/NAME.png` and
    `ImageSets/SegmentationContext/{train,val}.txt`; or what `openseg.prepare` makes of the
    published annotations. background: count the background as class 0, 60 classes in all.
    """

    def __init__(
        self, root: str | Path, split: str, background: bool = False, **options: Any
    ) -> None:
        info, ignored = (INFO_WITH_BACKGROUND, (255,)) if background else (INFO, (0,))
        super().__init__(root, split, info, ignored, **options)

    def list_original(self, split: str) -> Listing:
        lists = self.root / "ImageSets" / "SegmentationContext"
        if not (lists / f"{split}.txt").is_file():
            raise self._unlisted(split, lists) if lists.is_dir() else self._unprepared(split)
        images, labels = self.root / "JPEGImages", self.root / "SegmentationClassContext"
        return match_folders(images, labels, read_names(lists / f"{split}.txt"))
