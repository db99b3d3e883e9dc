# SPDX-License-Identifier: MIT
"""The kernels of `self_attention` with their gradient.

Besides the arguments and the result, float32 [2, B, N] is kept: the softmax's greatest scaled
scores and inverse sums.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg.ops import _flops
from openseg.ops._kernels import registered
from openseg.ops._layout import empty_map


def empty_attention(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """What an attention kernel returns, without values: the result and the statistics."""
    batch, _, height, width = query.shape
    statistics = query.new_empty((2, batch, height * width), dtype=torch.float32)
    return empty_map(query, value.shape[1]), statistics


def empty_gradients(query: Tensor, key: Tensor | None, value: Tensor) -> tuple[Tensor, ...]:
    grad_key = query.new_empty(0) if key is None else empty_map(key, key.shape[1])
    return empty_map(query, query.shape[1]), grad_key, empty_map(value, value.shape[1])


def fake_forward(query, key, value, scale, allow_tf32=False):
    return empty_attention(query, value)


def _fake_backward(grad, query, key, value, out, statistics, scale, allow_tf32=False):
    return empty_gradients(query, key, value)


def flops_forward(query, key, value, scale, *options, **others):
    batch, channels, height, width = query
    return _flops.attention(batch * (height * width) ** 2, channels, value[1])


def _flops_backward(grad, query, key, value, out, statistics, scale, *options, **others):
    batch, channels, height, width = query
    return _flops.attention_backward(batch * (height * width) ** 2, channels, value[1])


SIGNATURE = (
    "(Tensor query, Tensor? key, Tensor value, float scale, bool allow_tf32=False)"
    " -> (Tensor, Tensor)"
)
FORWARD = registered(
    "self_attention",
    "self_attention" + SIGNATURE,
    fake_forward,
    flops_forward,
)
BACKWARD = registered(
    "self_attention",
    "self_attention_backward(Tensor grad, Tensor query, Tensor? key, Tensor value, Tensor out,"
    " Tensor statistics, float scale, bool allow_tf32=False) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    _flops_backward,
)


class PixelAttention(torch.autograd.Function):
    """`key` is None where it is the query: the gradient of the query is then that of both.

    `kernels` are the operators of both passes, `options` their arguments after the maps.
    """

    @staticmethod
    def forward(
        ctx,
        query: Tensor,
        key: Tensor | None,
        value: Tensor,
        kernels: tuple[Any, Any],
        options: tuple[Any, ...],
    ) -> Tensor:
        forward, ctx.run_backward = kernels
        ctx.options = options
        out, statistics = forward(query, key, value, *options)
        ctx.save_for_backward(query, key, value, out, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, *saved = ctx.saved_tensors
        grad_query, grad_key, grad_value = ctx.run_backward(grad, query, key, *saved, *ctx.options)
        return grad_query, None if key is None else grad_key, grad_value, None, None
