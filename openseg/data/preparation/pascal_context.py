# SPDX-License-Identifier: MIT
"""Pascal-Context: label maps of 459 kinds (MATLAB files), or the 59 already in two files of masks.

The masks are those of PyTorch-Encoding, with which openseg.pytorch and others prepare the set:
{image id: PIL image of 0 (background) to 59}.
"""

import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from openseg.data.datasets.listing import read_names, require_files
from openseg.data.preparation.conversion import Conversion, matlab_label
from openseg.errors import DataError

# Of the 459 kinds, those that are classes 1 to 59; both lists are alphabetical.
_KINDS = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105),
    *(113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308),
    *(324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454),
    458,
)


def convert_pascal_context(root: Path) -> list[Conversion]:
    """root is VOC2010, with `JPEGImages/NAME.jpg`, and either `train.pth` and `val.pth`, there or
    in `PytorchEncoding/`, or `trainval/NAME.mat` with `ImageSets/Main/{train,val}.txt`."""
    for folder in (root, root / "PytorchEncoding"):
        if (folder / "train.pth").is_file():
            conversions = list(_from_masks(root, folder))
            break
    else:
        conversions = list(_from_matlab(root))
    require_files(conversion.image for conversion in conversions)
    return conversions


def _from_masks(root: Path, folder: Path) -> Iterator[Conversion]:
    require_files(folder / f"{split}.pth" for split in ("train", "val"))
    for split in ("train", "val"):
        path = folder / f"{split}.pth"
        for number, mask in sorted(_load_masks(path).items()):
            name = f"{str(number)[:4]}_{str(number)[4:]}"  # 2008000002 → 2008_000002
            yield Conversion(
                split, root / "JPEGImages" / f"{name}.jpg", partial(np.array, mask, dtype=np.uint8)
            )


def _load_masks(path: Path) -> dict[int, Any]:
    """The masks of a file that may hold images and plain values, and run no code."""
    try:
        with torch.serialization.safe_globals([Image.Image]):
            masks = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(f"{path}: the masks cannot be read ({error}); copy it again") from error
    if not isinstance(masks, dict) or not all(isinstance(m, Image.Image) for m in masks.values()):
        raise DataError(f"{path}: holds something else; expected {{image id: mask}}")
    return masks


def _from_matlab(root: Path) -> Iterator[Conversion]:
    if not (root / "trainval").is_dir():
        raise DataError(
            f"{root}: there are neither masks (train.pth and val.pth) nor label maps "
            "(trainval/NAME.mat) of Pascal-Context; expected one of them in VOC2010"
        )
    table = np.zeros(460, dtype=np.uint8)
    table[list(_KINDS)] = np.arange(1, 60)
    for split in ("train", "val"):
        names = read_names(root / "ImageSets" / "Main" / f"{split}.txt")
        labels = [root / "trainval" / f"{name}.mat" for name in names]
        require_files(labels)
        for name, label in zip(names, labels, strict=True):
            image = root / "JPEGImages" / f"{name}.jpg"
            yield Conversion(split, image, matlab_label(label, "LabelMap", table))
