# SPDX-License-Identifier: MIT
"""Triton kernels of `upsample_cross_entropy`: a program has the pixels between four logits.

Backward, the program of a cell sums what its pixels owe to each of the four, and every logit
then adds what its four cells have for it. Hard pixels are mined between the kernels, in torch.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from openseg.ops._triton import cell_pixels, launch, power_of_two
from openseg.ops._triton_kernels import (
    blend,
    blend_classes,
    cell,
    corners,
    load_corners,
    next_weight,
)
from openseg.ops.upsample_cross_entropy.reference import Ohem, _hard

_PIXELS_OF_A_PROGRAM = 1024


@triton.jit
def _log_sum_exp(
    logits, offsets, weight, down, right, classes, stride_class, BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """(greatest logit, log Σ exp(logit - greatest), Σ weight · logit) over classes."""
    greatest = tl.full((BLOCK_P,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK_P,), tl.float32)
    weighted = tl.zeros((BLOCK_P,), tl.float32)
    for k0 in range(0, classes, BLOCK_K):
        k = k0 + tl.arange(0, BLOCK_K)
        values = load_corners(logits + k.to(tl.int64) * stride_class, offsets, k < classes)
        values = blend_classes(values, down, right)
        factor = (k < classes).to(tl.float32)
        if WEIGHTED:
            factor = tl.load(weight + k, mask=k < classes, other=0.0)
        weighted += tl.sum(factor[:, None] * values, 0)
        values = tl.where((k < classes)[:, None], values, -float("inf"))
        higher = tl.maximum(greatest, tl.max(values, 0))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(greatest - shift) + tl.sum(tl.exp(values - shift[None, :]), 0)
        greatest = higher
    return greatest, tl.log(total), weighted


@triton.jit
def upsample_cross_entropy_kernel(
    logits, target, weight, loss, lse, nll, totals, classes, height, width, out_height, out_width,
    stride_image, stride_class, stride_row, stride_column, pixels_each, ignore_index, smoothing,
    ALIGN: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTHED: tl.constexpr,
    EACH: tl.constexpr, MINED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Outputs of each pixel; float64 sums of loss and weight, wrong labels, first wrong one."""
    row, column, top, left, across, count = cell(height, width, out_height, out_width, ALIGN)
    image = tl.program_id(2).to(tl.int64)
    logits += image * stride_image
    offsets = corners(row, column, height, width, stride_row, stride_column)
    loss_sum = tl.zeros((BLOCK_P,), tl.float32)
    weight_sum = tl.zeros((BLOCK_P,), tl.float32)
    wrong_sum = tl.zeros((BLOCK_P,), tl.float32)
    pixels = tl.num_programs(2).to(tl.int64) * out_height * out_width
    first_wrong = tl.zeros((BLOCK_P,), tl.int64) + pixels
    first = tl.program_id(1) * pixels_each
    for start in range(first, tl.minimum(first + pixels_each, count), BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        y, x = top + p // tl.maximum(across, 1), left + p % tl.maximum(across, 1)
        down = next_weight(y, row, height, out_height, ALIGN)
        right = next_weight(x, column, width, out_width, ALIGN)
        place = (image * out_height + y) * out_width + x
        label = tl.load(target + place, mask=p < count, other=0).to(tl.int64)
        given = (p < count) & (label != ignore_index)
        counted = given & (label >= 0) & (label < classes)
        wrong = given & ~counted
        label = tl.where(counted, label, 0)
        own = blend(load_corners(logits + label * stride_class, offsets, p < count), down, right)
        factor = counted.to(tl.float32)
        if WEIGHTED:
            factor = tl.load(weight + label, mask=counted, other=0.0)
        greatest, log_total, weighted = _log_sum_exp(
            logits, offsets, weight, down, right, classes, stride_class, BLOCK_P, BLOCK_K, WEIGHTED
        )
        own_nll = (greatest - own) + log_total
        value = factor * own_nll
        if SMOOTHED:
            weights = tl.load(weight + classes) if WEIGHTED else 1.0 * classes
            uniform = ((greatest + log_total) * weights - weighted) / classes
            value = (1 - smoothing) * value + smoothing * uniform
        value = tl.where(counted, value, 0.0)
        marked = tl.where(counted, greatest + log_total, float("inf"))
        tl.store(lse + place, marked, mask=p < count)
        tl.store(loss + place, value, mask=(p < count) & EACH)
        tl.store(nll + place, own_nll, mask=(p < count) & MINED)
        loss_sum += value
        weight_sum += factor
        wrong_sum += wrong.to(tl.float32)
        first_wrong = tl.minimum(first_wrong, tl.where(wrong, place, pixels))
    program = (image * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0)
    totals += 4 * (program + tl.program_id(0))
    tl.store(totals, tl.sum(loss_sum, 0).to(tl.float64))
    tl.store(totals + 1, tl.sum(weight_sum, 0).to(tl.float64))
    tl.store(totals + 2, tl.sum(wrong_sum, 0).to(tl.float64))
    tl.store(totals + 3, tl.min(first_wrong, 0).to(tl.float64))


@triton.jit
def upsample_cross_entropy_backward_kernel(
    logits, target, weight, lse, scale, parts, classes, height, width, out_height, out_width,
    stride_image, stride_class, stride_row, stride_column, smoothing,
    ALIGN: tl.constexpr, WEIGHTED: tl.constexpr, SMOOTHED: tl.constexpr,
    ONE_SCALE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """What the pixels of a cell give to its corners: float32 parts [4, B, height, width, K]."""
    row, column, top, left, across, count = cell(height, width, out_height, out_width, ALIGN)
    image = tl.program_id(2).to(tl.int64)
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    offsets = corners(row, column, height, width, stride_row, stride_column)
    logits += image * stride_image
    values = load_corners(logits + k.to(tl.int64) * stride_class, offsets, k < classes)
    values = values[0][None, :], values[1][None, :], values[2][None, :], values[3][None, :]
    weights = 1.0 * classes
    factor = tl.full((BLOCK_K,), 1.0, tl.float32)
    if WEIGHTED:
        factor = tl.load(weight + k, mask=k < classes, other=0.0)
        weights = tl.load(weight + classes)
    upper_left = tl.zeros((BLOCK_P, BLOCK_K), tl.float32)
    upper_right, lower_left, lower_right = upper_left, upper_left, upper_left
    for start in range(0, count, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        y, x = top + p // tl.maximum(across, 1), left + p % tl.maximum(across, 1)
        down = next_weight(y, row, height, out_height, ALIGN)
        right = next_weight(x, column, width, out_width, ALIGN)
        place = (image * out_height + y) * out_width + x
        known = tl.load(lse + place, mask=p < count, other=float("inf"))
        counted = known != float("inf")
        label = tl.load(target + place, mask=counted, other=0).to(tl.int32)
        if ONE_SCALE:
            grad_loss = tl.zeros((BLOCK_P,), tl.float32) + tl.load(scale)
        else:
            grad_loss = tl.load(scale + place, mask=counted, other=0.0)
        blended = blend(values, down[:, None], right[:, None])
        probability = tl.exp(blended - known[:, None])
        grad = probability - (k[None, :] == label[:, None]).to(tl.float32)
        if WEIGHTED:
            grad *= tl.load(weight + label, mask=counted, other=0.0)[:, None]
        if SMOOTHED:
            uniform = (weights * probability - factor[None, :]) / classes
            grad = (1 - smoothing) * grad + smoothing * uniform
        grad = tl.where(counted[:, None], grad * grad_loss[:, None], 0.0)
        upper, lower = (1.0 - down)[:, None] * grad, down[:, None] * grad
        upper_left += (1.0 - right)[:, None] * upper
        upper_right += right[:, None] * upper
        lower_left += (1.0 - right)[:, None] * lower
        lower_right += right[:, None] * lower
    cells = tl.num_programs(0)
    step = tl.num_programs(2).to(tl.int64) * cells * classes
    parts += (image * cells + tl.program_id(0)) * classes + k
    tl.store(parts, tl.sum(upper_left, 0), mask=k < classes)
    tl.store(parts + step, tl.sum(upper_right, 0), mask=k < classes)
    tl.store(parts + 2 * step, tl.sum(lower_left, 0), mask=k < classes)
    tl.store(parts + 3 * step, tl.sum(lower_right, 0), mask=k < classes)


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
    ohem: str,
    thresh: float,
    min_kept: int,
    each: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, classes, height, width = logits.shape
    lse = logits.new_empty(target.shape, dtype=torch.float32)
    loss = torch.empty_like(lse) if each or ohem else lse.new_empty(0)
    nll = torch.empty_like(lse) if ohem else lse.new_empty(0)
    if images == 0:
        return loss, lse, nll, lse.new_zeros(4, dtype=torch.float64)
    most = cell_pixels((height, width), target.shape[1:])
    grid = height * width, triton.cdiv(most, _PIXELS_OF_A_PROGRAM), images
    parts = lse.new_empty((grid[0] * grid[1] * grid[2], 4), dtype=torch.float64)
    launch(
        upsample_cross_entropy_kernel, grid, logits, target, _with_sum(weight, logits),
        loss, lse, nll, parts, classes, height, width, *target.shape[1:], *logits.stride(),
        _PIXELS_OF_A_PROGRAM, ignore_index, label_smoothing, ALIGN=align_corners,
        WEIGHTED=weight is not None, SMOOTHED=label_smoothing > 0, EACH=each or bool(ohem),
        MINED=bool(ohem), BLOCK_P=power_of_two(most, most=32),
        BLOCK_K=power_of_two(classes, most=32 if weight is None else 16), num_warps=1,
    )  # fmt: skip
    totals = torch.cat([parts[:, :3].sum(0), parts[:, 3:].amin(0)])
    if ohem:
        _mine(loss, lse, nll, totals, target, weight, Ohem(thresh, min_kept, ohem))
    return loss, lse, nll, totals


def _with_sum(weight: Tensor | None, logits: Tensor) -> Tensor:
    """The classes' weights and their sum, [K + 1]; anything that is not read where all are one."""
    return logits if weight is None else torch.cat([weight, weight.sum().view(1)])


def _mine(
    loss: Tensor,
    lse: Tensor,
    nll: Tensor,
    totals: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ohem: Ohem,
) -> None:
    """Takes the pixels that are not hard out of loss, lse and totals."""
    counted = lse != float("inf")
    entered = counted.clone()
    if ohem.variant == "openseg":
        entered.view(-1)[0].fill_(True)  # assigned, it would come from the host
    kept = entered & _hard(nll, entered, ohem)
    factor = kept.double()
    if ohem.variant == "ocnet" and weight is not None:
        factor = factor * weight[torch.where(counted, target, 0).long()]
    loss.masked_fill_(~kept, 0)
    lse.masked_fill_(~kept, float("inf"))
    totals[0], totals[1] = loss.sum(dtype=torch.float64), factor.sum()


def upsample_cross_entropy_backward(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    lse: Tensor,
    scale: Tensor,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    images, classes, height, width = logits.shape
    grad = torch.empty_like(logits)
    if images == 0:
        return grad
    parts = logits.new_empty((4, images, height, width, classes), dtype=torch.float32)
    block_k = power_of_two(classes, most=32)
    most = cell_pixels((height, width), target.shape[1:])
    launch(
        upsample_cross_entropy_backward_kernel,
        (height * width, triton.cdiv(classes, block_k), images), logits, target,
        _with_sum(weight, logits), lse, scale, parts, classes, height, width,
        *target.shape[1:], *logits.stride(), label_smoothing, ALIGN=align_corners,
        WEIGHTED=weight is not None, SMOOTHED=label_smoothing > 0,
        ONE_SCALE=scale.numel() == 1, BLOCK_P=power_of_two(most, most=32), BLOCK_K=block_k,
        num_warps=4,
    )  # fmt: skip
    total, right, lower, lower_right = parts
    total[:, :, 1:] += right[:, :, :-1]
    total[:, 1:] += lower[:, :-1]
    total[:, 1:, 1:] += lower_right[:, :-1, :-1]
    return grad.copy_(total.permute(0, 3, 1, 2))
