# SPDX-License-Identifier: MIT
"""Conversion: one sample to write; and how the conversions read MATLAB files.

A conversion only describes what is to be done: nothing is read before `label()` is called.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openseg.data.matlab import load_matlab
from openseg.errors import DataError


class Conversion(NamedTuple):
    """A sample of `split`: the image to copy, and what gives its label, uint8 [H, W]."""

    split: str
    image: Path
    label: Callable[[], np.ndarray]

    @property
    def name(self) -> str:
        return self.image.stem


def matlab_label(path: Path, key: str, table: np.ndarray | None = None) -> Callable[[], np.ndarray]:
    """What gives the label map that a MATLAB file holds as `key`, such as "GTcls.Segmentation".

    table: the value to write for each value of the file.
    """
    return partial(_read_matlab_label, path, key, table)


def _read_matlab_label(path: Path, key: str, table: np.ndarray | None) -> np.ndarray:
    name, *fields = key.split(".")
    values: Any = load_matlab(path, name).get(name)
    try:
        for field in fields:
            values = values[field][0, 0]
    except (TypeError, ValueError, IndexError):
        values = None
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "uif":
        raise DataError(f"{path}: has no label map {key!r}; expected the published file")
    last = 255 if table is None else len(table) - 1
    ids = values.astype(np.int64)
    if values.size and not (np.array_equal(ids, values) and 0 <= ids.min() <= ids.max() <= last):
        raise DataError(
            f"{path}: label values {values.min()} to {values.max()}; expected whole numbers, 0 to "
            f"{last}"
        )
    return (ids if table is None else table[ids]).astype(np.uint8)
