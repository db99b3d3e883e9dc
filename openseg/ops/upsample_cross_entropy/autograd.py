# SPDX-License-Identifier: MIT
"""`upsample_cross_entropy` by the kernels, with its gradient for the logits.

Saved for the backward pass is one float32 for each pixel, besides the arguments.
"""

from typing import Any

import torch
from torch import Tensor

from openseg import _ext

FORWARD = _ext.operator("upsample_cross_entropy")
BACKWARD = _ext.operator("upsample_cross_entropy_backward")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

if FORWARD is not None:

    @torch.library.register_fake("openseg::upsample_cross_entropy")
    def _(logits, target, weight, align_corners, ignore_index, label_smoothing, per_pixel):
        def empty(shape):
            return logits.new_empty(shape, dtype=torch.float32)

        return empty(target.shape if per_pixel else (0,)), empty((2,)), empty(target.shape)

    @torch.library.register_fake("openseg::upsample_cross_entropy_backward")
    def _(grad_loss, logits, *_):
        return torch.empty_like(logits)


class _UpsampleCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, weight: Tensor | None, *options
    ) -> Tensor:
        *problem, mean = options  # align_corners, ignore_index, label_smoothing; mean
        loss, sums, log_sum_exp = FORWARD(logits, target, weight, *problem, not mean)
        total = torch.where(sums[1] > 0, sums[1], 1)
        ctx.save_for_backward(logits, target, weight, log_sum_exp, total if mean else None)
        ctx.problem = problem
        return sums[0] / total if mean else loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, weight, log_sum_exp, total = ctx.saved_tensors
        grad_loss = grad.contiguous() if total is None else grad / total
        arguments = (grad_loss, logits, target, weight, log_sum_exp)
        return BACKWARD(*arguments, *ctx.problem), *[None] * 6


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    align_corners: bool,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Tensor:
    if not logits.is_contiguous(memory_format=torch.channels_last):
        logits = logits.contiguous()
    if weight is not None:
        weight = weight.detach().float().contiguous()
    return _UpsampleCrossEntropy.apply(
        logits,
        target.contiguous(),
        weight,
        align_corners,
        ignore_index,
        label_smoothing,
        reduction == "mean",
    )
