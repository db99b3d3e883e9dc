# SPDX-License-Identifier: MIT
"""The kernels of `object_attention` with their gradient, which needs nothing but the arguments."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg import _ext
from openseg.ops import _backend
from openseg.ops._layout import empty_map

FORWARD = _ext.operator("object_attention")
BACKWARD = _ext.operator("object_attention_backward")

if FORWARD is not None:

    @torch.library.register_fake("openseg::object_attention")
    def _(query, key, value, scale, allow_tf32=False):
        return empty_map(query, value.shape[2])

    @torch.library.register_fake("openseg::object_attention_backward")
    def _(grad, query, key, value, scale, allow_tf32=False):
        grad_query = empty_map(query, query.shape[1])
        return grad_query, key.new_empty(key.shape), value.new_empty(value.shape)


class ObjectAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.options = scale, _backend.allows_tf32()
        return FORWARD(query, key, value, *ctx.options)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *BACKWARD(grad, *ctx.saved_tensors, *ctx.options), None
