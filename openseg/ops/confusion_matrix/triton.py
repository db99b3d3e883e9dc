# SPDX-License-Identifier: MIT
"""Triton kernel of `confusion_matrix`: each program counts in a matrix of its own."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from openseg.ops._triton import launch, split

_MOST_CELLS = 1 << 23  # of all programs, 32 MiB


@triton.jit
def confusion_matrix_kernel(
    prediction, target, counts, wrong, pixels, pixels_each, classes, ignore_index,
    BLOCK: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * pixels_each
    last = tl.minimum(first + pixels_each, pixels)
    counts += tl.program_id(0).to(tl.int64) * classes * classes
    wrong_count = tl.zeros((BLOCK,), tl.int64)
    first_wrong = tl.zeros((BLOCK,), tl.int64) + pixels
    for start in range(first, last, BLOCK):
        n = start + tl.arange(0, BLOCK)
        row = tl.load(target + n, mask=n < last, other=0).to(tl.int64)
        column = tl.load(prediction + n, mask=n < last, other=0).to(tl.int64)
        kept = (n < last) & (row != ignore_index)
        inside = (row >= 0) & (row < classes) & (column >= 0) & (column < classes)
        ones = tl.full((BLOCK,), 1, tl.int32)
        place = counts + row * classes + column
        tl.atomic_add(place, ones, mask=kept & inside, sem="relaxed")
        wrong_count += (kept & ~inside).to(tl.int64)
        first_wrong = tl.minimum(first_wrong, tl.where(kept & ~inside, n, pixels))
    tl.store(wrong + 2 * tl.program_id(0), tl.sum(wrong_count, 0))
    tl.store(wrong + 2 * tl.program_id(0) + 1, tl.min(first_wrong, 0))


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    prediction, target = prediction.contiguous(), target.contiguous()
    pixels, cells = target.numel(), num_classes * num_classes
    if pixels == 0:
        shape = (num_classes, num_classes)
        return target.new_zeros(shape, dtype=torch.int64), target.new_zeros(2, dtype=torch.int64)
    parts, pixels_each = split(pixels, 1024, -(-(cells << 8) // _MOST_CELLS))
    counts = target.new_zeros((parts, num_classes, num_classes), dtype=torch.int32)
    wrong = target.new_empty((parts, 2), dtype=torch.int64)
    launch(
        confusion_matrix_kernel, (parts,), prediction, target, counts, wrong, pixels, pixels_each,
        num_classes, ignore_index, BLOCK=1024,
    )  # fmt: skip
    return counts.sum(0), torch.stack([wrong[:, 0].sum(), wrong[:, 1].amin()])
