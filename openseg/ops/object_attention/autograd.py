# SPDX-License-Identifier: MIT
"""The CPU kernel of `object_attention` with its gradient, which needs nothing but the arguments."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg import _ext
from openseg.ops import _flops
from openseg.ops._layout import empty_map

FORWARD = _ext.operator("object_attention")
BACKWARD = _ext.operator("object_attention_backward")

if FORWARD is not None:

    @torch.library.register_fake("openseg::object_attention")
    def _(query, key, value, scale):
        return empty_map(query, value.shape[2])

    @torch.library.register_fake("openseg::object_attention_backward")
    def _(grad, query, key, value, scale):
        grad_query = empty_map(query, query.shape[1])
        return grad_query, key.new_empty(key.shape), value.new_empty(value.shape)


def _flops_forward(query, key, value, scale, **options):
    batch, channels, height, width = query
    return _flops.attention(batch * height * width * key[1], channels, value[2])


def _flops_backward(grad, query, key, value, scale, **options):
    batch, channels, height, width = query
    return _flops.attention_backward(batch * height * width * key[1], channels, value[2])


_flops.register(FORWARD, _flops_forward)
_flops.register(BACKWARD, _flops_backward)


class ObjectAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        return FORWARD(query, key, value, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *BACKWARD(grad, *ctx.saved_tensors, ctx.scale), None
