# SPDX-License-Identifier: MIT
"""The kernels of `inplace_abn` with their gradient, and the sums of processes between their halves.

Kept are the output (or the input), and float64 [3, C]: mean, biased variance and number of values.
An infinite number stands for statistics that do not depend on the batch: their gradients, which are
divided by it, vanish.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg import _ext
from openseg.ops import _flops
from openseg.ops._layout import empty_map
from openseg.ops.inplace_abn import synchronise

FORWARD = _ext.operator("inplace_abn")
_OVERWRITE = _ext.operator("inplace_abn_")
_STATISTICS = _ext.operator("inplace_abn_statistics")
_BACKWARD = _ext.operator("inplace_abn_backward")
_BACKWARD_SUMS = _ext.operator("inplace_abn_backward_sums")


def _rows(like: Tensor, rows: int) -> Tensor:
    return like.new_empty((rows, like.shape[1]), dtype=torch.float64)


if FORWARD is not None:

    @torch.library.register_fake("openseg::inplace_abn")
    def _(x, *others):
        return empty_map(x, x.shape[1]), _rows(x, 3)

    @torch.library.register_fake("openseg::inplace_abn_")
    def _(x, *others):
        return _rows(x, 3)

    @torch.library.register_fake("openseg::inplace_abn_statistics")
    def _(x):
        return _rows(x, 3)

    @torch.library.register_fake("openseg::inplace_abn_backward")
    def _(grad, kept, *others):
        return empty_map(kept, kept.shape[1]), _rows(kept, 2)

    @torch.library.register_fake("openseg::inplace_abn_backward_sums")
    def _(grad, kept, *others):
        return _rows(kept, 2)


_flops.register(_flops.none, FORWARD, _OVERWRITE, _STATISTICS, _BACKWARD, _BACKWARD_SUMS)


class InPlaceABN(torch.autograd.Function):
    """The activated map, and the statistics that it was normalised with."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        known: Tensor | None,
        shift: Tensor | None,
        eps: float,
        activation: str,
        activation_param: float,
        group: synchronise.Group,
        keep_input: bool,
        overwrite: bool,
    ) -> tuple[Tensor, Tensor]:
        options = eps, activation, activation_param
        affine = _affine(x, weight, bias, eps)
        if known is None and group is not None:
            known = synchronise.merged(_STATISTICS(x), shift, group)
        if overwrite:
            statistics = _OVERWRITE(x, known, affine, *options)
            ctx.mark_dirty(x)
            z = x
        else:
            z, statistics = FORWARD(x, known, affine, *options)
        ctx.save_for_backward(x if keep_input else z, statistics, affine, weight, bias)
        ctx.options = *options, keep_input
        ctx.group = group
        ctx.mark_non_differentiable(statistics)
        return z, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        kept, statistics, affine, weight, bias = ctx.saved_tensors
        arguments = grad, kept, statistics, affine
        if ctx.group is None:
            grad_x, sums = _BACKWARD(*arguments, None, *ctx.options)
        else:
            sums = _BACKWARD_SUMS(*arguments, *ctx.options)
            total = synchronise.sum_over(sums, ctx.group)
            grad_x, _ = _BACKWARD(*arguments, total, *ctx.options)
        grad_bias, grad_weight = sums
        grad_weight = grad_weight / affine[0]
        if weight is not None:
            grad_weight = torch.where(weight < 0, -grad_weight, grad_weight).to(weight.dtype)
        return (
            grad_x,
            None if weight is None else grad_weight,
            None if bias is None else grad_bias.to(bias.dtype),
            *[None] * 8,
        )


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """float32 [2, C]: the gain, which is positive, and the bias."""
    none = x.new_zeros(x.shape[1], dtype=torch.float32)
    gain = none + 1 if weight is None else weight.float().abs() + eps
    return torch.stack([gain, none if bias is None else bias.float()])
