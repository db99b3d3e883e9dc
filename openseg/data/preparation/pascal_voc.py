# SPDX-License-Identifier: MIT
"""Pascal VOC 2012 with the labels of SBD: 10,582 images to train on, "trainaug", and VOC's val."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from openseg.data.datasets.listing import read_names, require_files
from openseg.data.datasets.paired import open_label
from openseg.data.preparation.conversion import Conversion, matlab_label


def convert_pascal_voc(root: Path, sbd: Path) -> list[Conversion]:
    """root is VOC2012; sbd is `benchmark_RELEASE/dataset`, with `cls/NAME.mat` and
    `{train,val}.txt`. Where both have a label, VOC's own is taken; none of its val is trained on.
    """
    lists = root / "ImageSets" / "Segmentation"
    val, own = set(read_names(lists / "val.txt")), set(read_names(lists / "train.txt"))
    further = {name for split in ("train", "val") for name in read_names(sbd / f"{split}.txt")}
    conversions, files = [], []
    for split, names in (("trainaug", (own | further) - val), ("val", val)):
        for name in sorted(names):
            image = root / "JPEGImages" / f"{name}.jpg"
            if name in own | val:
                label = root / "SegmentationClass" / f"{name}.png"
                read: Callable[[], np.ndarray] = partial(_open_png, label)
            else:
                label = sbd / "cls" / f"{name}.mat"
                read = matlab_label(label, "GTcls.Segmentation")
            files += [image, label]
            conversions.append(Conversion(split, image, read))
    require_files(files)
    return conversions


def _open_png(path: Path) -> np.ndarray:
    return open_label(path).astype(np.uint8)
