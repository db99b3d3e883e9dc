# SPDX-License-Identifier: MIT
"""Label maps and masks of instances in files, given other labels; their form stays as it is.

Instances come as the Cityscapes tools have them: NAME_pred.txt, a line for each with the path of
its mask beside that file, class and score. A mask has 0 outside of the instance.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from openseg.data.base import UNREADABLE, unreadable
from openseg.engine.files import make_folder, replacing
from openseg.errors import DataError

INSTANCES = "_pred.txt"
_LABEL_MODES = ("L", "P", "I;16")
_MASK_MODES = ("1", *_LABEL_MODES)


class Mending(NamedTuple):
    """mend: labels [H, W], any integers, to those for them. size: what they must have, as `origin`
    has it, the image or the file of offsets."""

    mend: Callable[[np.ndarray], np.ndarray]
    size: tuple[int, int]
    origin: Path


def mend_label_map(source: Path, target: Path, mending: Mending) -> np.ndarray:
    """Write the map with its mode, palette and size. Gives the pixels that changed, and all."""
    palette, before = _open(source, _LABEL_MODES, mending)
    after = mending.mend(before.astype(np.int32)).astype(before.dtype)
    result = Image.fromarray(after)
    if palette is not None:
        result.putpalette(palette)
    with replacing(target) as temporary:
        result.save(temporary)
    return _counts(before, after)


def mend_instances(source: Path, folder: Path, mending: Mending) -> np.ndarray:
    """Write each mask, 0 and 255, and then the list of them, unchanged. Gives the pixels of masks
    that changed, and all."""
    counts = np.zeros(2, dtype=np.int64)
    for name in masks_of(source):
        _, values = _open(source.parent / name, _MASK_MODES, mending)
        before = (values > 0).astype(np.int32)
        after = mending.mend(before)
        target = folder / name
        make_folder(target.parent)
        with replacing(target) as temporary:
            Image.fromarray((255 * after).astype(np.uint8)).save(temporary)
        counts += _counts(before, after)
    with replacing(folder / source.name) as temporary:
        shutil.copyfile(source, temporary)
    return counts


def masks_of(source: Path) -> list[str]:
    """The paths of the masks that a list names; DataError for a line or a file that cannot be."""
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{source}: the list cannot be read ({error})") from error
    names = []
    for number, words in enumerate(map(str.split, lines), start=1):
        if not words:
            continue
        place = f"{source}, line {number}"
        if len(words) != 3:
            raise DataError(
                f"{place}: {' '.join(words)!r} given, the path of a mask, its class and its score "
                "expected"
            )
        path = Path(words[0])
        if path.is_absolute() or ".." in path.parts:
            raise DataError(
                f"{place}: {words[0]!r} given, a path below the folder of the list expected"
            )
        if not (source.parent / path).is_file():
            raise DataError(f"{place}: there is no mask {source.parent / path}; add it")
        names.append(words[0])
    return names


def _counts(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return np.array([np.count_nonzero(before != after), before.size])


def _open(
    path: Path, modes: tuple[str, ...], mending: Mending
) -> tuple[list[int] | None, np.ndarray]:
    """Palette and values [H, W] of an image that fits."""
    try:
        with Image.open(path) as file:
            mode, palette, values = file.mode, file.getpalette(), np.array(file)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    height, width = mending.size
    if mode not in modes or values.shape != mending.size:
        raise DataError(
            f"{path}: {values.shape[1]}×{values.shape[0]} in mode {mode} given, "
            f"{width}×{height} as {mending.origin} and one channel of ids ({', '.join(modes)}) "
            "expected"
        )
    return palette, values
