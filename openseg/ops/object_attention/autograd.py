# SPDX-License-Identifier: MIT
"""The kernels of `object_attention` with their gradient, which needs nothing but the arguments."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg.ops import _backend, _flops
from openseg.ops._kernels import registered
from openseg.ops._layout import empty_map


def _fake_forward(query, key, value, scale, allow_tf32=False):
    return empty_map(query, value.shape[2])


def _fake_backward(grad, query, key, value, scale, allow_tf32=False):
    grad_query = empty_map(query, query.shape[1])
    return grad_query, key.new_empty(key.shape), value.new_empty(value.shape)


def _flops_forward(query, key, value, scale, *options, **others):
    batch, channels, height, width = query
    return _flops.attention(batch * height * width * key[1], channels, value[2])


def _flops_backward(grad, query, key, value, scale, *options, **others):
    batch, channels, height, width = query
    return _flops.attention_backward(batch * height * width * key[1], channels, value[2])


FORWARD = registered(
    "object_attention",
    "object_attention(Tensor query, Tensor key, Tensor value, float scale, bool allow_tf32=False)"
    " -> Tensor",
    _fake_forward,
    _flops_forward,
)
BACKWARD = registered(
    "object_attention",
    "object_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, float scale,"
    " bool allow_tf32=False) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    _flops_backward,
)


class ObjectAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, query: Tensor, key: Tensor, value: Tensor, scale: float, backend: str
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.options, ctx.backend = (scale, _backend.allows_tf32()), backend
        return FORWARD[backend](query, key, value, *ctx.options)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grads = BACKWARD[ctx.backend](grad, *ctx.saved_tensors, *ctx.options)
        return *grads, None, None
