# SPDX-License-Identifier: MIT
"""What every data set gives: `DatasetInfo`, `Sample`, and the one way to open an image.

A label map is uint8 with 255 as ignore index, so a set has at most 255 classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageOps

from openseg.errors import DataError

Color = tuple[int, int, int]
IGNORE_INDEX = 255
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # of Pillow
_WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # more than 8 bits a channel


@dataclass(frozen=True)
class DatasetInfo:
    """What the train ids of a set mean.

    palette: one RGB colour a class.
    flip_pairs: train ids that trade places in a mirrored image, such as left and right arm.
    label_ids: the value of each class in the files of the set itself, which its own tools score.
    """

    name: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int = IGNORE_INDEX
    flip_pairs: tuple[tuple[int, int], ...] = ()
    label_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.classes) <= IGNORE_INDEX:
            raise DataError(
                f"{self.name}: {len(self.classes)} classes; expected 1 to {IGNORE_INDEX}, "
                "because label maps are uint8 and 255 means ignore"
            )
        for index, name in enumerate(self.classes):
            first = self.classes.index(name)
            if first != index:
                raise DataError(
                    f"{self.name}: the classes {first} and {index} are both called {name!r}; "
                    "expected a name of its own for each class: rename one of them"
                )
        if len(self.palette) != len(self.classes):
            raise DataError(
                f"{self.name}: {len(self.palette)} colours for {len(self.classes)} classes; "
                "give one RGB colour a class"
            )
        if self.label_ids is not None and len(self.label_ids) != len(self.classes):
            raise DataError(
                f"{self.name}: {len(self.label_ids)} label_ids for {len(self.classes)} classes; "
                "give the value of each class in the label files"
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)


class Sample(NamedTuple):
    """image: uint8 [H, W, 3] RGB; label: uint8 [H, W] of train ids and 255, or None."""

    image: np.ndarray
    label: np.ndarray | None
    name: str


class Dataset(Protocol):
    """A map-style data set: what transforms, training and evaluation rely on."""

    info: DatasetInfo

    def __len__(self) -> int: ...

    def load(self, index: int) -> Sample: ...

    def __getitem__(self, index: int) -> Sample: ...


def open_image(path: str | Path) -> np.ndarray:
    """Read an 8-bit image as uint8 [H, W, 3] RGB, upright (its EXIF orientation is applied).

    Raises DataError for a file that is missing, damaged, no image, too large for Pillow, or deeper
    than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode in _WIDE_MODES:
                raise DataError(
                    f"{path}: the image has mode {image.mode!r}, more than 8 bits a channel; "
                    "expected 8-bit grey or RGB: convert it first"
                )
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def unreadable(path: str | Path, error: Exception) -> DataError:
    """The error for an image or label file that Pillow cannot read."""
    if not Path(path).is_file():
        return DataError(f"{path}: there is no such file; check the path")
    if isinstance(error, Image.DecompressionBombError):
        size_and_limit = str(error).partition(",")[0]
        return DataError(
            f"{path}: the image is too large for Pillow ({size_and_limit}); scale it down or cut "
            "it into parts, or, if you trust it, raise PIL.Image.MAX_IMAGE_PIXELS from Python"
        )
    return DataError(
        f"{path}: cannot be read as an image ({error}); "
        "expected a whole file of a format that Pillow knows: copy it again or remove it"
    )
