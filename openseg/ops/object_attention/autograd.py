# SPDX-License-Identifier: MIT
"""The kernels of `object_attention` with their gradient, which needs nothing but the arguments."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg import _ext
from openseg.ops import _backend, _flops, _triton
from openseg.ops._layout import empty_map


def _fake_forward(query, key, value, scale, allow_tf32=False):
    return empty_map(query, value.shape[2])


def _fake_backward(grad, query, key, value, scale, allow_tf32=False):
    grad_query = empty_map(query, query.shape[1])
    return grad_query, key.new_empty(key.shape), value.new_empty(value.shape)


FORWARD = _ext.operator("object_attention")
BACKWARD = _ext.operator("object_attention_backward")

if FORWARD is not None:
    torch.library.register_fake("openseg::object_attention")(_fake_forward)
    torch.library.register_fake("openseg::object_attention_backward")(_fake_backward)

_TRITON_FORWARD = _triton.operator(
    "object_attention",
    "object_attention(Tensor query, Tensor key, Tensor value, float scale, bool allow_tf32=False)"
    " -> Tensor",
    _fake_forward,
)
_TRITON_BACKWARD = _triton.operator(
    "object_attention",
    "object_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, float scale,"
    " bool allow_tf32=False) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
)


def _flops_forward(query, key, value, scale, **options):
    batch, channels, height, width = query
    return _flops.attention(batch * height * width * key[1], channels, value[2])


def _flops_backward(grad, query, key, value, scale, **options):
    batch, channels, height, width = query
    return _flops.attention_backward(batch * height * width * key[1], channels, value[2])


_flops.register(_flops_forward, FORWARD, _TRITON_FORWARD)
_flops.register(_flops_backward, BACKWARD, _TRITON_BACKWARD)


class ObjectAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, query: Tensor, key: Tensor, value: Tensor, scale: float, backend: str
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.options, ctx.backend = (scale, _backend.allows_tf32()), backend
        run = _TRITON_FORWARD if backend == "triton" else FORWARD
        return run(query, key, value, *ctx.options)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        run = _TRITON_BACKWARD if ctx.backend == "triton" else BACKWARD
        return *run(grad, *ctx.saved_tensors, *ctx.options), None, None
