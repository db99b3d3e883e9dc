# SPDX-License-Identifier: MIT
"""Resizing a crop of an image without resizing the rest of it.

The arithmetic is that of OpenCV, with which the published networks were trained (half-pixel
centres, replicated border, cubic with a = -0.75), and not that of Pillow, which low-passes when it
shrinks. Only the pixels of the window are computed: a 1024×512 crop of a frame enlarged to
4096×2048 costs a sixteenth of the whole.
"""

from typing import Literal, NamedTuple

import numpy as np

Interpolation = Literal["cubic", "linear"]
Size = tuple[int, int]  # height, width
_CUBIC_A = -0.75
_BLOCK = 1 << 16  # values that a core works on at a time


class Window(NamedTuple):
    """A rectangle of the resized image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def resize_image(
    image: np.ndarray,
    size: Size,
    window: Window,
    interpolation: Interpolation,
    first: Size | None = None,
) -> np.ndarray:
    """The `window` of `image` uint8 [H, W, C] resized to `size` (height, width): uint8 [h, w, C].

    As cv2.resize with INTER_CUBIC or INTER_LINEAR, up to one grey level where a rounding differs.
    first: the image is resized to this size before; only what the second pass reads is computed.
    """
    old = first or image.shape[:2]
    if size == old:
        return _before(image, window, interpolation, first)
    rows, row_weights = _taps(old[0], size[0], window.top, window.height, interpolation)
    columns, column_weights = _taps(old[1], size[1], window.left, window.width, interpolation)
    read = _hull(rows, columns)
    image = _before(image, read, interpolation, first)
    channels = image.shape[2]
    pixels: np.ndarray = image.astype(np.float32).reshape(read.height, -1)
    pixels = _combine(pixels, rows - read.top, row_weights)  # [h, columns that are read · C]
    pixels = pixels.reshape(window.height, read.width, channels).transpose(1, 0, 2)
    pixels = pixels.reshape(read.width, -1)
    pixels = _combine(pixels, columns - read.left, column_weights)  # [w, h · C]
    np.clip(np.rint(pixels, out=pixels), 0, 255, out=pixels)
    resized = pixels.astype(np.uint8).reshape(window.width, window.height, channels)
    return np.ascontiguousarray(resized.transpose(1, 0, 2))


def _combine(lines: np.ndarray, taps: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """float32 [n, M]: line i is Σₜ weights[t, i] · lines[taps[t, i]].

    In blocks that stay in the cache, and without temporary arrays.
    """
    count = taps.shape[1]
    combined = np.empty((count, lines.shape[1]), dtype=np.float32)
    step = max(_BLOCK // max(lines.shape[1], 1), 1)
    scaled = np.empty((step, lines.shape[1]), dtype=np.float32)
    for start in range(0, count, step):
        block = slice(start, start + step)
        total = combined[block]
        term = scaled[: len(total)]
        total[:] = 0
        for tap, weight in zip(taps[:, block], weights[:, block, None], strict=True):
            np.take(lines, tap, axis=0, out=term, mode="clip")  # unlike "raise", without a copy
            term *= weight
            total += term
    return combined


def resize_label(
    label: np.ndarray, size: Size, window: Window, first: Size | None = None
) -> np.ndarray:
    """The `window` of `label` [H, W, …] resized to `size`, nearest neighbour as cv2.INTER_NEAREST:
    the source of pixel i is floor(i · old / new). first: as for an image."""
    rows = np.arange(window.top, window.top + window.height)
    columns = np.arange(window.left, window.left + window.width)
    for new, old in ((size, first or size), (first or size, label.shape)):
        rows, columns = rows * old[0] // new[0], columns * old[1] // new[1]
    return np.take(label[rows], columns, axis=1)


def _before(
    image: np.ndarray, window: Window, interpolation: Interpolation, size: Size | None
) -> np.ndarray:
    """The `window` of the image as it is, or as it is when resized to `size`."""
    if size is not None:
        return resize_image(image, size, window, interpolation)
    top, left, height, width = window
    return image[top : top + height, left : left + width]


def _hull(rows: np.ndarray, columns: np.ndarray) -> Window:
    """The smallest window with all these rows and columns."""
    top, left = int(rows.min()), int(columns.min())
    return Window(top, left, int(rows.max()) + 1 - top, int(columns.max()) + 1 - left)


def _taps(
    old: int, new: int, start: int, count: int, interpolation: Interpolation
) -> tuple[np.ndarray, np.ndarray]:
    """Source indices, int64 [T, count], and weights, float32 [T, count], of `count` output pixels
    of one axis; T is 4 (cubic) or 2 (linear)."""
    center = (np.arange(start, start + count) + 0.5) * (old / new) - 0.5
    base = np.floor(center)
    t = center - base
    if interpolation == "linear":
        offsets = np.array([0, 1])
        weights = np.stack([1 - t, t])
    else:
        offsets = np.array([-1, 0, 1, 2])
        weights = np.stack([_far(1 + t), _near(t), _near(1 - t), _far(2 - t)])
    indices = np.clip(base.astype(np.int64) + offsets[:, None], 0, old - 1)
    return indices, weights.astype(np.float32)


def _near(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel for |x| ≤ 1."""
    return ((_CUBIC_A + 2) * x - (_CUBIC_A + 3)) * x * x + 1


def _far(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel for 1 ≤ |x| ≤ 2."""
    return ((_CUBIC_A * x - 5 * _CUBIC_A) * x + 8 * _CUBIC_A) * x - 4 * _CUBIC_A
