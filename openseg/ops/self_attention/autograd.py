# SPDX-License-Identifier: MIT
"""The CPU kernel of `self_attention` with its gradient.

Besides the arguments and the result, [2, B, N] is kept in float32: each pixel's greatest score and
the inverse of its sum of exponentials.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg import _ext
from openseg.ops._layout import empty_map

FORWARD = _ext.operator("self_attention")
BACKWARD = _ext.operator("self_attention_backward")

if FORWARD is not None:

    @torch.library.register_fake("openseg::self_attention")
    def _(query, key, value, scale):
        return empty_attention(query, value)

    @torch.library.register_fake("openseg::self_attention_backward")
    def _(grad, query, key, value, out, statistics, scale):
        return empty_gradients(query, key, value)


def empty_attention(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """What an attention kernel returns, without values."""
    batch, _, height, width = query.shape
    statistics = query.new_empty((2, batch, height * width), dtype=torch.float32)
    return empty_map(query, value.shape[1]), statistics


def empty_gradients(query: Tensor, key: Tensor | None, value: Tensor) -> tuple[Tensor, ...]:
    grad_key = query.new_empty(0) if key is None else empty_map(key, key.shape[1])
    return empty_map(query, query.shape[1]), grad_key, empty_map(value, value.shape[1])


class SelfAttention(torch.autograd.Function):
    """`key` is None where it is the query: the gradient of the query is then that of both."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor | None, value: Tensor, scale: float) -> Tensor:
        out, statistics = FORWARD(query, key, value, scale)
        ctx.save_for_backward(query, key, value, out, statistics)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, *saved = ctx.saved_tensors
        grad_query, grad_key, grad_value = BACKWARD(grad, query, key, *saved, ctx.scale)
        return grad_query, None if key is None else grad_key, grad_value, None
