# SPDX-License-Identifier: MIT
"""The kernels with their gradient. Between the passes lives one float32 [B, H, W].

A pixel that does not count, ignored or not hard, is marked there by infinity: the backward pass
needs to know nothing of the mining.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg.ops._kernels import registered
from openseg.ops.upsample_cross_entropy.reference import Ohem


def _fake_forward(logits, target, weight, align_corners, ignore_index, smoothing, ohem, *options):
    each = options[-1]
    pixels = logits.new_empty(target.shape, dtype=torch.float32)
    none = logits.new_empty((0,), dtype=torch.float32)
    return (
        torch.empty_like(pixels) if each or ohem else none,
        pixels,
        torch.empty_like(pixels) if ohem else torch.empty_like(none),
        logits.new_empty((4,), dtype=torch.float64),
    )


def _fake_backward(logits, *others):
    return torch.empty_like(logits)


FORWARD = registered(
    "upsample_cross_entropy",
    "upsample_cross_entropy(Tensor logits, Tensor target, Tensor? weight, bool align_corners,"
    " int ignore_index, float label_smoothing, str ohem, float thresh, int min_kept, bool each)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_forward,
)
BACKWARD = registered(
    "upsample_cross_entropy",
    "upsample_cross_entropy_backward(Tensor logits, Tensor target, Tensor? weight, Tensor lse,"
    " Tensor scale, bool align_corners, int ignore_index, float label_smoothing) -> Tensor",
    _fake_backward,
)


class UpsampleCrossEntropy(torch.autograd.Function):
    """Loss, and float64 [number of labels out of range, position of the first]."""

    @staticmethod
    def forward(
        ctx,
        logits: Tensor,
        target: Tensor,
        weight: Tensor | None,
        align_corners: bool,
        ignore_index: int,
        label_smoothing: float,
        ohem: Ohem | None,
        reduction: str,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        variant, thresh, min_kept = ("", 0.0, 0)
        if ohem is not None:
            thresh, min_kept, variant = ohem
        loss, lse, _, totals = FORWARD[backend](
            logits,
            target,
            weight,
            align_corners,
            ignore_index,
            label_smoothing,
            variant,
            thresh,
            min_kept,
            reduction == "none",
        )
        divisor = torch.where(totals[1] > 0, totals[1], 1) if reduction == "mean" else None
        if reduction != "none":
            loss = (totals[0] / divisor if reduction == "mean" else totals[0]).float()
        invalid = totals[2:].clone()
        ctx.save_for_backward(logits, target, weight, lse, divisor)
        ctx.options = align_corners, ignore_index, label_smoothing
        ctx.backend = backend
        ctx.mark_non_differentiable(invalid)
        return loss, invalid

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, _):
        logits, target, weight, lse, divisor = ctx.saved_tensors
        scale = (grad if divisor is None else grad / divisor).float().contiguous()
        grad_logits = BACKWARD[ctx.backend](logits, target, weight, lse, scale, *ctx.options)
        return grad_logits, *[None] * 8
