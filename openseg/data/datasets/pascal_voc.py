# SPDX-License-Identifier: MIT
"""Pascal VOC 2012: 20 kinds of objects and the background, which counts; outlines are ignored.

Papers train on the augmented list "trainaug", whose further labels come from SBD.
"""

from pathlib import Path
from typing import Any

from openseg.data import palettes
from openseg.data.base import DatasetInfo
from openseg.data.datasets.listing import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    Listing,
    list_files,
    match,
    read_names,
)
from openseg.data.datasets.published import PublishedDataset

INFO = DatasetInfo(
    "pascal_voc",
    (
        *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
        *("chair", "cow", "dining table", "dog", "horse", "motorbike", "person", "potted plant"),
        *("sheep", "sofa", "train", "tv monitor"),
    ),
    palettes.voc(21),
    label_ids=tuple(range(21)),
)


class PascalVOC(PublishedDataset):
    """Everingham et al., "The Pascal visual object classes challenge", IJCV 2010; Hariharan et al.,
    "Semantic contours from inverse detectors", ICCV 2011 (SBD).

    root is VOC2012, with `JPEGImages/NAME.jpg`, `SegmentationClass/NAME.png`, and for trainaug
    `SegmentationClassAug/NAME.png`, which serves where the first has no label. A split is a list of
    names, `ImageSets/Segmentation/SPLIT.txt`: train, val, trainval, trainaug.
    """

    def __init__(self, root: str | Path, split: str, **options: Any) -> None:
        super().__init__(root, split, INFO, (255,), **options)

    def list_original(self, split: str) -> Listing:
        lists = self.root / "ImageSets" / "Segmentation"
        if not (lists / f"{split}.txt").is_file():
            if split == "trainaug" and lists.is_dir():
                raise self._unprepared(split, "--sbd DIR ")
            raise self._unlisted(split, lists)
        images, labels = self.root / "JPEGImages", self.root / "SegmentationClass"
        augmented = self.root / "SegmentationClassAug"
        found = list_files(augmented, LABEL_SUFFIXES) if augmented.is_dir() else {}
        found |= list_files(labels, LABEL_SUFFIXES)
        names = [Path(line.split()[0]).stem for line in read_names(lists / f"{split}.txt")]
        return match(list_files(images, IMAGE_SUFFIXES), found, images, labels, names)
