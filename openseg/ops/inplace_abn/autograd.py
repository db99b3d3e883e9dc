# SPDX-License-Identifier: MIT
"""The kernels of `inplace_abn` with their gradient, and the sums of processes between their halves.

Kept are the output (or the input), and float64 [3, C]: mean, biased variance and number of values.
An infinite number stands for statistics that do not depend on the batch: their gradients, which are
divided by it, vanish.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg.ops._kernels import registered
from openseg.ops._layout import empty_map
from openseg.ops.inplace_abn import synchronise


class Kernels(NamedTuple):
    """The operators of a backend."""

    inplace_abn: Any
    inplace_abn_: Any
    inplace_abn_statistics: Any
    inplace_abn_backward: Any
    inplace_abn_backward_sums: Any


def _rows(like: Tensor, rows: int) -> Tensor:
    return like.new_empty((rows, like.shape[1]), dtype=torch.float64)


_FAKES = Kernels(
    lambda x, *others: (empty_map(x, x.shape[1]), _rows(x, 3)),
    lambda x, *others: _rows(x, 3),
    lambda x: _rows(x, 3),
    lambda grad, kept, *others: (empty_map(kept, kept.shape[1]), _rows(kept, 2)),
    lambda grad, kept, *others: _rows(kept, 2),
)
_SCHEMAS = Kernels(
    "(Tensor x, Tensor? known, Tensor affine, float eps, str activation, float parameter)"
    " -> (Tensor, Tensor)",
    "(Tensor(a!) x, Tensor? known, Tensor affine, float eps, str activation, float parameter)"
    " -> Tensor",
    "(Tensor x) -> Tensor",
    "(Tensor grad, Tensor kept, Tensor statistics, Tensor affine, Tensor? known, float eps,"
    " str activation, float parameter, bool kept_input) -> (Tensor, Tensor)",
    "(Tensor grad, Tensor kept, Tensor statistics, Tensor affine, float eps, str activation,"
    " float parameter, bool kept_input) -> Tensor",
)
_REGISTERED = [
    registered("inplace_abn", name + schema, fake)
    for name, schema, fake in zip(Kernels._fields, _SCHEMAS, _FAKES, strict=True)
]
KERNELS = {
    backend: Kernels(*(operator[backend] for operator in _REGISTERED))
    for backend in ("cuda", "cpp", "triton")
}


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
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        kernels, options = KERNELS[backend], (eps, activation, activation_param)
        affine = _affine(x, weight, bias, eps)
        if known is None and group is not None:
            known = synchronise.merged(kernels.inplace_abn_statistics(x), shift, group)
        if overwrite:
            statistics = kernels.inplace_abn_(x, known, affine, *options)
            ctx.mark_dirty(x)
            z = x
        else:
            z, statistics = kernels.inplace_abn(x, known, affine, *options)
        ctx.save_for_backward(x if keep_input else z, statistics, affine, weight, bias)
        ctx.options = *options, keep_input
        ctx.group, ctx.backend = group, backend
        ctx.mark_non_differentiable(statistics)
        return z, statistics

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, _):
        kept, statistics, affine, weight, bias = ctx.saved_tensors
        kernels, arguments = KERNELS[ctx.backend], (grad, kept, statistics, affine)
        if ctx.group is None:
            grad_x, sums = kernels.inplace_abn_backward(*arguments, None, *ctx.options)
        else:
            sums = kernels.inplace_abn_backward_sums(*arguments, *ctx.options)
            total = synchronise.sum_over(sums, ctx.group)
            grad_x, _ = kernels.inplace_abn_backward(*arguments, total, *ctx.options)
        grad_bias, grad_weight = sums
        grad_weight = grad_weight / affine[0]
        if weight is not None:
            grad_weight = torch.where(weight < 0, -grad_weight, grad_weight).to(weight.dtype)
        return (
            grad_x,
            None if weight is None else grad_weight,
            None if bias is None else grad_bias.to(bias.dtype),
            *[None] * 9,
        )


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """float32 [2, C]: the gain, which is positive, and the bias."""
    if weight is None:
        gain = x.new_ones(x.shape[1], dtype=torch.float32)
    else:
        gain = weight.float().abs() + eps
    return torch.stack([gain, torch.zeros_like(gain) if bias is None else bias.float()])
