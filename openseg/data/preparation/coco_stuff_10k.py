# SPDX-License-Identifier: MIT
"""COCO-Stuff-10K: the map `S` of each MATLAB file, whose values 0 to 182 are kept."""

from pathlib import Path

from openseg.data.datasets.listing import read_names, require_files
from openseg.data.preparation.conversion import Conversion, matlab_label

_LISTS = {"train": "train", "val": "test"}


def convert_coco_stuff_10k(root: Path) -> list[Conversion]:
    """root holds `images/NAME.jpg`, `annotations/NAME.mat` and `imageLists/{train,test}.txt`; the
    published test list is the validation split of every paper."""
    named = [
        (split, name)
        for split, list_name in _LISTS.items()
        for name in read_names(root / "imageLists" / f"{list_name}.txt")
    ]
    images = [root / "images" / f"{name}.jpg" for _, name in named]
    labels = [root / "annotations" / f"{name}.mat" for _, name in named]
    require_files([*images, *labels])
    return [
        Conversion(split, image, matlab_label(label, "S"))
        for (split, _), image, label in zip(named, images, labels, strict=True)
    ]
