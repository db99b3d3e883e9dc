# SPDX-License-Identifier: MIT
"""Triton kernel of `upsample_argmax`: a program has the pixels between four logits of each class.

So a logit is read once for all the pixels that it shares its neighbours with.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from openseg.ops._triton import cell_pixels, launch, power_of_two
from openseg.ops._triton_kernels import blend_classes, cell, corners, load_corners, next_weight

_PIXELS_OF_A_PROGRAM = 1024


@triton.jit
def upsample_argmax_kernel(
    logits, labels, confidence, classes, height, width, out_height, out_width,
    stride_image, stride_class, stride_row, stride_column, pixels_each, ALIGN: tl.constexpr,
    CONFIDENCE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    row, column, top, left, across, count = cell(height, width, out_height, out_width, ALIGN)
    image = tl.program_id(2).to(tl.int64)
    logits += image * stride_image
    offsets = corners(row, column, height, width, stride_row, stride_column)
    first = tl.program_id(1) * pixels_each
    for start in range(first, tl.minimum(first + pixels_each, count), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        y, x = top + p // tl.maximum(across, 1), left + p % tl.maximum(across, 1)
        down = next_weight(y, row, height, out_height, ALIGN)
        right = next_weight(x, column, width, out_width, ALIGN)
        best = tl.full((BLOCK_P,), -float("inf"), tl.float32)
        label = tl.zeros((BLOCK_P,), tl.int32)
        first_nan = tl.full((BLOCK_P,), 2147483647, tl.int32)
        total = tl.zeros((BLOCK_P,), tl.float32)
        for k0 in range(0, classes, BLOCK_K):
            k = k0 + tl.arange(0, BLOCK_K)
            planes = logits + k.to(tl.int64) * stride_class
            values = blend_classes(load_corners(planes, offsets, k < classes), down, right)
            values = tl.where((k < classes)[:, None], values, -float("inf"))
            nan = values != values
            first_nan = tl.minimum(first_nan, tl.min(tl.where(nan, k[:, None], 2147483647), 0))
            known = tl.where(nan, -float("inf"), values)
            greatest, index = tl.max(known, 0, return_indices=True)
            label = tl.where(greatest > best, k0 + index, label)
            if CONFIDENCE:
                shift = tl.maximum(greatest, best)
                shift = tl.where(shift == -float("inf"), 0.0, shift)
                total = total * tl.exp(best - shift) + tl.sum(tl.exp(values - shift[None, :]), 0)
            best = tl.maximum(greatest, best)
        # as in torch, NaN is the greatest of all
        label = tl.where(first_nan < classes, first_nan, label)
        place = (image * out_height + y) * out_width + x
        tl.store(labels + place, label.to(labels.dtype.element_ty), mask=p < count)
        if CONFIDENCE:
            # NaN where all logits are -inf, as that of softmax
            share = tl.where(best == -float("inf"), float("nan"), 1.0 / total)
            tl.store(confidence + place, share, mask=p < count)


def upsample_argmax(
    logits: Tensor, size: tuple[int, int], align_corners: bool, confidence: bool
) -> tuple[Tensor, Tensor]:
    images, classes, height, width = logits.shape
    shape = (images, *size)
    labels = logits.new_empty(shape, dtype=torch.uint8 if classes <= 256 else torch.int64)
    probability = logits.new_empty(shape if confidence else (0,), dtype=torch.float32)
    if images == 0:
        return labels, probability
    most = cell_pixels((height, width), size)
    grid = height * width, triton.cdiv(most, _PIXELS_OF_A_PROGRAM), images
    launch(
        upsample_argmax_kernel, grid, logits, labels, probability, classes, height, width, *size,
        *logits.stride(), _PIXELS_OF_A_PROGRAM, ALIGN=align_corners, CONFIDENCE=confidence,
        BLOCK_P=power_of_two(most, most=32), BLOCK_K=power_of_two(classes, most=32), num_warps=1,
    )  # fmt: skip
    return labels, probability
