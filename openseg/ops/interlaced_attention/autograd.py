# SPDX-License-Identifier: MIT
"""The CPU kernel of `interlaced_attention` with its gradient: `self_attention` by groups."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg import _ext
from openseg.ops.self_attention.autograd import empty_attention, empty_gradients

FORWARD = _ext.operator("interlaced_attention")
BACKWARD = _ext.operator("interlaced_attention_backward")

if FORWARD is not None:

    @torch.library.register_fake("openseg::interlaced_attention")
    def _(query, key, value, scale, groups, kind):
        return empty_attention(query, value)

    @torch.library.register_fake("openseg::interlaced_attention_backward")
    def _(grad, query, key, value, out, statistics, scale, groups, kind):
        return empty_gradients(query, key, value)


class InterlacedAttention(torch.autograd.Function):
    """`key` is None where it is the query: the gradient of the query is then that of both."""

    @staticmethod
    def forward(
        ctx,
        query: Tensor,
        key: Tensor | None,
        value: Tensor,
        scale: float,
        groups: list[int],
        kind: str,
    ) -> Tensor:
        out, statistics = FORWARD(query, key, value, scale, groups, kind)
        ctx.save_for_backward(query, key, value, out, statistics)
        ctx.options = scale, groups, kind
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, *saved = ctx.saved_tensors
        grad_query, grad_key, grad_value = BACKWARD(grad, query, key, *saved, *ctx.options)
        return grad_query, None if key is None else grad_key, grad_value, None, None, None
