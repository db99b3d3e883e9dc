# SPDX-License-Identifier: MIT
"""How far each pixel is from the border of its region, and which way is inwards: SegFix's targets.

A region is all pixels of one label, connected or not, as in the published files. There is no such
thing as a border at the edge of the image.
"""

import numpy as np

from openseg.data.base import IGNORE_INDEX

_FURTHEST = 250
_RADIUS = 2
_ROWS = 16  # of a block, which stays in the cache and ends as soon as its own distances allow


def border_offsets(
    label: np.ndarray, ignore_index: int = IGNORE_INDEX, smallest: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Distance and direction, both uint8 [H, W], of a label map [H, W] of integers.

    distance: Euclidean, to the nearest pixel of another label, 250 at most. direction: half of
    180° + the angle of the distance's gradient, which points inwards; angles run from -180° to
    180°, with 0° to the right and 90° downwards. Pixels to ignore and labels of less than
    `smallest` pixels have distance 0 and direction 90, that of no gradient.
    """
    distance = _distances(label)
    values, counts = np.unique(label, return_counts=True)
    left_out = [*values[counts < smallest], ignore_index]
    distance[np.isin(label, left_out)] = 0
    down, right = _gradient(distance, label)
    degrees = np.degrees(np.arctan2(down, right))
    half_angle = ((degrees + 180) / 2).astype(np.uint8)
    return np.minimum(distance, _FURTHEST).astype(np.uint8), half_angle


def _distances(label: np.ndarray) -> np.ndarray:
    """Exact, float32 [H, W]: to the nearest pixel of another label, or H + W where there is none.

    First along the columns; then along the rows, where a pixel of another label is at its own
    place and one of the same label as far as its column says.
    """
    height, width = label.shape
    column = np.minimum(_up_to_change(label), _up_to_change(label[::-1])[::-1])
    squared = column.astype(np.float32) ** 2
    blocks = [slice(top, top + _ROWS) for top in range(0, height, _ROWS)]
    nearest = np.concatenate([_along_rows(label[rows], squared[rows]) for rows in blocks])
    return np.sqrt(np.minimum(nearest, np.float32(height + width) ** 2))


def _along_rows(label: np.ndarray, squared: np.ndarray) -> np.ndarray:
    nearest = squared.copy()
    for step in range(1, label.shape[1]):
        if step**2 >= nearest.max():
            break
        for here, there in (
            (np.s_[:, step:], np.s_[:, :-step]),
            (np.s_[:, :-step], np.s_[:, step:]),
        ):
            other = np.where(label[here] == label[there], squared[there], 0)
            nearest[here] = np.minimum(nearest[here], other + np.float32(step**2))
    return nearest


def _up_to_change(label: np.ndarray) -> np.ndarray:
    """Rows up to the first pixel of another label in the column; H + W where there is none."""
    height, width = label.shape
    rows = np.arange(height)[:, None]
    changed = np.zeros((height, width), dtype=bool)
    changed[1:] = label[1:] != label[:-1]
    last = np.maximum.accumulate(np.where(changed, rows, -1), axis=0)
    return np.where(last < 0, height + width, rows - last + 1)


def _gradient(distance: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Down and right, from the 5 × 5 pixels around each that have its label; each weighs
    (its offset) / (square of its distance), and what is outside of the image counts 0."""
    height, width = label.shape
    down, right = np.zeros((2, height, width), dtype=np.float32)
    padded = np.pad(distance, _RADIUS)
    labels = np.pad(label.astype(np.int64), _RADIUS, constant_values=-1)
    for j in range(-_RADIUS, _RADIUS + 1):
        for i in range(-_RADIUS, _RADIUS + 1):
            if i == j == 0:
                continue
            window = np.s_[_RADIUS + j : _RADIUS + j + height, _RADIUS + i : _RADIUS + i + width]
            value = np.where(labels[window] == label, padded[window], 0) / (i * i + j * j)
            down += j * value
            right += i * value
    return down, right
