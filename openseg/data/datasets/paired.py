# SPDX-License-Identifier: MIT
"""PairedDataset: listed pairs of an image and a label file, and the map from file values to ids.

The folders are looked at once, when the data set is made, so that a missing label is found before
the first iteration; files are opened only when they are loaded, and nothing is kept in memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from openseg.data.base import (
    IGNORE_INDEX,
    UNREADABLE,
    DatasetInfo,
    Sample,
    open_image,
    unreadable,
)
from openseg.data.datasets.listing import Listing, keep_only, require_pairs
from openseg.data.resampling import Window, resize_image, resize_label
from openseg.errors import DataError

_LABEL_MODES = ("1", "L", "P", "I", "I;16")  # one channel of integers
_MAX_VALUES = 1 << 16  # of a 16-bit label file
UNKNOWN = -1


class PairedDataset:
    """The pairs of `listing`, their labels translated by `id_map`.

    id_map: {value in the file: train id, or 255 to ignore}; a value that it does not name is an
        error. Without it the values of the files are the train ids.
    only: text file with the names of the samples to keep, one a line.
    strict: an image or label without the other is an error; else it is left out.
    half_size: images are halved (cubic), and labels too (nearest) unless they have that size.

    Labels are PNG, indexed or grey, 8 or 16 bits, with class ids for pixels (no colours).
    Raises DataError, which names the file or folder, when the folders or a file do not fit.
    """

    def __init__(
        self,
        info: DatasetInfo,
        listing: Listing,
        id_map: Mapping[int, int] | None = None,
        *,
        only: str | Path | None = None,
        strict: bool = True,
        half_size: bool = False,
    ) -> None:
        if only is not None:
            listing = keep_only(listing, only)
        if strict:
            require_pairs(listing)
        self.info = info
        self.listing = listing
        self.train_ids = _lookup_table(info.num_classes, id_map)
        self.id_map = id_map
        self.half_size = half_size

    def __len__(self) -> int:
        return len(self.listing.pairs)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index)

    def load(self, index: int) -> Sample:
        name, _, label_path = self.listing.pairs[index]
        image, values = self.read(index)
        if values is None:
            return Sample(image, None, name)
        train_ids = self.train_ids[values]
        unknown = train_ids == UNKNOWN
        if unknown.any():
            assert label_path is not None
            raise self._out_of_range(label_path, values[unknown])
        return Sample(image, train_ids.astype(np.uint8), name)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """The image, and the values of the label file as they stand in it, uint16 [H, W]."""
        _, image_path, label_path = self.listing.pairs[index]
        image = open_image(image_path)
        values = None if label_path is None else open_label(label_path)
        if self.half_size:
            image, values = _halve(image, values)
        if values is None:
            return image, None
        if image.shape[:2] != values.shape:
            raise DataError(
                f"{label_path}: the label is {values.shape[1]}×{values.shape[0]} and its image "
                f"{image_path} is {image.shape[1]}×{image.shape[0]}; expected equal sizes: "
                "resize the label with nearest-neighbour sampling, or export it anew"
            )
        return image, values

    @property
    def known_values(self) -> list[int]:
        """The values that a label file may have."""
        plain = (*range(self.info.num_classes), IGNORE_INDEX)
        return sorted(plain if self.id_map is None else self.id_map)

    def _out_of_range(self, path: Path, values: np.ndarray) -> DataError:
        return DataError(
            f"{path}: label values {_listed(np.unique(values))} ({values.size} pixels) are no ids "
            f"of {self.info.name}; expected {spans(self.known_values)}: {self._way_out}"
        )

    @property
    def _way_out(self) -> str:
        """What to do about a value that is no id."""
        if self.id_map is not None:
            return f"add them to id_map, with {IGNORE_INDEX} for those to ignore"
        return (
            f"name the missing classes, or give an id_map {{value: train id, or {IGNORE_INDEX} to "
            "ignore}"
        )


def _halve(image: np.ndarray, values: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    height, width = max(image.shape[0] // 2, 1), max(image.shape[1] // 2, 1)
    window = Window(0, 0, height, width)
    if values is not None and values.shape == image.shape[:2]:
        values = resize_label(values, (height, width), window)
    return resize_image(image, (height, width), window, "cubic"), values


def open_label(path: Path) -> np.ndarray:
    """The values of a label file, uint16 [H, W], as they stand in it."""
    try:
        with Image.open(path) as file:
            if file.mode not in _LABEL_MODES:
                raise DataError(
                    f"{path}: the label has {len(file.getbands())} channels ({file.mode}); "
                    "expected one channel of class ids: convert the colours to ids first"
                )
            return np.array(file).astype(np.uint16)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _listed(values: Iterable[int]) -> str:
    """Numbers in a row, the first few of them."""
    numbers = [str(int(value)) for value in values]
    return ", ".join(numbers[:8]) + (", …" if len(numbers) > 8 else "")


def spans(values: Sequence[int]) -> str:
    """Sorted numbers in short, such as "0 to 18, 255"."""
    first = [v for i, v in enumerate(values) if i == 0 or values[i - 1] != v - 1]
    last = [v for i, v in enumerate(values) if i + 1 == len(values) or values[i + 1] != v + 1]
    pairs = zip(first, last, strict=True)
    return ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in pairs)


def _lookup_table(num_classes: int, id_map: Mapping[int, int] | None) -> np.ndarray:
    """int16 [65536]: the train id of each value a label file can have, -1 where it has none."""
    if id_map is None:
        id_map = {value: value for value in (*range(num_classes), IGNORE_INDEX)}
    table = np.full(_MAX_VALUES, UNKNOWN, dtype=np.int16)
    for value, train_id in id_map.items():
        if not 0 <= value < _MAX_VALUES:
            raise DataError(f"id_map: label value {value}; expected 0 to {_MAX_VALUES - 1}")
        if not (0 <= train_id < num_classes or train_id == IGNORE_INDEX):
            raise DataError(
                f"id_map: value {value} maps to {train_id}; expected a train id of 0 to "
                f"{num_classes - 1}, or {IGNORE_INDEX} to ignore"
            )
        table[value] = train_id
    return table
