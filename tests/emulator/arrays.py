# SPDX-License-Identifier: MIT
"""Arrays for kernels: bfloat16 in NumPy, memory formats, outputs full of NaN, exact upsampling."""

from collections.abc import Callable
from typing import Any

import numpy as np

FLOATING = ("float32", "bfloat16", "float16")
# Puts a map somewhere in memory, side by side.
place: Callable[[np.ndarray], np.ndarray] = np.ascontiguousarray
_STORAGE = {"float32": np.float32, "bfloat16": np.uint16, "float16": np.float16}


def encode(values: np.ndarray, dtype: str) -> np.ndarray:
    """`values` rounded to `dtype`, as it lies in memory; bfloat16 as uint16."""
    if dtype != "bfloat16":
        return values.astype(_STORAGE[dtype])
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """float64 values of an array from memory."""
    if dtype == "bfloat16":
        stored = (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.astype(np.float64)


def rounding(values: np.ndarray, dtype: str) -> np.ndarray:
    """The error that storing in `dtype` may make: half a unit in the last place."""
    relative, smallest = {
        "float32": (2.0**-24, 0),
        "bfloat16": (2.0**-8, 0),
        "float16": (2.0**-11, 2.0**-25),  # half of the smallest subnormal number
    }[dtype]
    return np.maximum(relative * np.abs(values), smallest)


def assert_within(ours: np.ndarray, exact: np.ndarray, slack: np.ndarray, what: object) -> None:
    error = np.abs(ours - exact)
    assert (error <= slack).all(), f"{what}: error {error.max()}"


def filled_with_nan(shape: tuple[int, ...], dtype: str, channels_last: bool = False) -> np.ndarray:
    return laid_out(encode(np.full(shape, np.nan), dtype), channels_last)


def laid_out(array: np.ndarray, channels_last: bool) -> np.ndarray:
    """An array [B, C, H, W] in a memory format of its own, exactly as long as it has to be."""
    if not channels_last:
        return place(array)
    return place(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def strides(array: np.ndarray, prefix: str = "stride") -> dict[str, int]:
    """The fields stride_batch, stride_class … of a map [B, K, H, W], in elements."""
    names = ("batch", "class", "row", "column")
    return {f"{prefix}_{n}": s // array.itemsize for n, s in zip(names, array.strides, strict=True)}


def upsampling_of(
    stored: np.ndarray, dtype: str, size: tuple[int, int], align_corners: bool
) -> dict[str, Any]:
    """The fields of logits [B, K, h, w] as they lie, and of the size that they are upsampled to."""
    batch, classes, height, width = stored.shape
    return {
        "logits": stored,
        "dtype": dtype,
        "batch": batch,
        "classes": classes,
        "in_height": height,
        "in_width": width,
        **strides(stored),
        "out_height": size[0],
        "out_width": size[1],
        "align_corners": align_corners,
    }


def map_of(array: np.ndarray, dtype: str) -> dict[str, Any]:
    """The fields of a struct Map for an array [B, C, H, W] or [B, C, N]."""
    batch, channels, *size = array.shape
    steps = [step // array.itemsize for step in array.strides]
    return {
        "data": array,
        "dtype": dtype,
        "batch": batch,
        "channels": channels,
        "pixels": int(np.prod(size)),
        "stride_batch": steps[0],
        "stride_channel": steps[1],
        "stride_pixel": steps[-1],
    }


def as_map(values: np.ndarray, dtype: str, channels_last: bool) -> np.ndarray:
    """An array [B, C, N] in a layout of its own, exactly as long as it has to be."""
    return laid_out(encode(values, dtype)[:, :, None], channels_last)[:, :, 0]


def upsampling(size: int, out: int, align_corners: bool) -> np.ndarray:
    """The matrix [out, size] of linear interpolation along one axis."""
    position = np.arange(out, dtype=np.float64)
    if align_corners:
        position *= (size - 1) / (out - 1) if out > 1 else 0
    else:
        position = np.maximum((position + 0.5) * size / out - 0.5, 0)
    # Positions that are integers are not to fall below by rounding: their neighbour has weight 0.
    index = np.minimum(np.floor(position + 1e-9).astype(int), size - 1)
    weight = position - index
    matrix = np.zeros((out, size))
    matrix[np.arange(out), index] += 1 - weight
    matrix[np.arange(out), np.minimum(index + 1, size - 1)] += weight
    return matrix


def upsampled(values: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Bilinear upsampling of [B, K, h, w] in float64."""
    rows = upsampling(values.shape[2], size[0], align_corners)
    columns = upsampling(values.shape[3], size[1], align_corners)
    return np.einsum("yh,bkhw,xw->bkyx", rows, values, columns, optimize=True)


def log_sum_exp(values: np.ndarray) -> np.ndarray:
    """Over axis 1, which is dropped."""
    greatest = values.max(1, keepdims=True)
    return (np.log(np.exp(values - greatest).sum(1, keepdims=True)) + greatest)[:, 0]
