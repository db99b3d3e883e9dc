# SPDX-License-Identifier: MIT
"""SegFix's offsets in the files of openseg.pytorch: NAME.mat, predicted ones and targets.

The folders offset_semantic and offset_instance that were published hold predicted ones.
"""

from pathlib import Path

import numpy as np

from openseg.data.matlab import load_matlab, save_matlab
from openseg.errors import DataError


def read_offsets(path: Path) -> np.ndarray:
    """Predicted offsets, `mat` of the file: int64 [H, W, 2], (down, right) in pixels for each
    pixel, 0 away from borders. Raises DataError where the file cannot be read or has others."""
    offsets = load_matlab(path, "mat").get("mat")
    if not isinstance(offsets, np.ndarray) or offsets.dtype.kind not in "iuf":
        raise DataError(f"{path}: has no offsets 'mat'; expected a file of predicted offsets")
    whole = offsets.astype(np.int64)
    if offsets.ndim != 3 or offsets.shape[2] != 2 or not np.array_equal(whole, offsets):
        raise DataError(
            f"{path}: 'mat' of shape {offsets.shape} and type {offsets.dtype} given; expected "
            "whole numbers [height, width, 2], down and right for each pixel"
        )
    return whole


def write_offsets(path: Path, offsets: np.ndarray) -> None:
    """offsets: integers [H, W, 2] of -128 to 127, as `read_offsets` gives them."""
    save_matlab(path, mat=offsets.astype(np.int8))


def read_targets(path: Path) -> np.ndarray:
    """Distance and direction of `border_offsets`, uint8 [H, W, 2], from a file of the published
    dt_offset: `depth`, and `dir_deg`, which is 180° + the angle over `deg_reduce`."""
    contents = load_matlab(path, "depth", "dir_deg", "deg_reduce")
    try:
        distance, direction = contents["depth"], contents["dir_deg"]
        reduced = int(contents["deg_reduce"].item())
        return np.stack([distance, direction * (reduced / 2)], axis=2).astype(np.uint8)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: expected depth and dir_deg of one size [height, width], and deg_reduce: "
            "a file of the published dt_offset"
        ) from error
