# SPDX-License-Identifier: MIT
"""The kernels of `self_attention` with their gradient.

Besides the arguments and the result, float32 [2, B, N] is kept: the softmax's greatest scaled
scores and inverse sums.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg import _ext
from openseg.ops import _backend, _flops, _triton
from openseg.ops._layout import empty_map


def empty_attention(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """What an attention kernel returns, without values: the result and the statistics."""
    batch, _, height, width = query.shape
    statistics = query.new_empty((2, batch, height * width), dtype=torch.float32)
    return empty_map(query, value.shape[1]), statistics


def empty_gradients(query: Tensor, key: Tensor | None, value: Tensor) -> tuple[Tensor, ...]:
    grad_key = query.new_empty(0) if key is None else empty_map(key, key.shape[1])
    return empty_map(query, query.shape[1]), grad_key, empty_map(value, value.shape[1])


def _fake_forward(query, key, value, scale, allow_tf32=False):
    return empty_attention(query, value)


def _fake_backward(grad, query, key, value, out, statistics, scale, allow_tf32=False):
    return empty_gradients(query, key, value)


FORWARD = _ext.operator("self_attention")
BACKWARD = _ext.operator("self_attention_backward")

if FORWARD is not None:
    torch.library.register_fake("openseg::self_attention")(_fake_forward)
    torch.library.register_fake("openseg::self_attention_backward")(_fake_backward)

_TRITON_FORWARD = _triton.operator(
    "self_attention",
    "self_attention(Tensor query, Tensor? key, Tensor value, float scale) -> (Tensor, Tensor)",
    _fake_forward,
)
_TRITON_BACKWARD = _triton.operator(
    "self_attention",
    "self_attention_backward(Tensor grad, Tensor query, Tensor? key, Tensor value, Tensor out,"
    " Tensor statistics, float scale) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
)


def _flops_forward(query, key, value, scale, **options):
    batch, channels, height, width = query
    return _flops.attention(batch * (height * width) ** 2, channels, value[1])


def _flops_backward(grad, query, key, value, out, statistics, scale, **options):
    batch, channels, height, width = query
    return _flops.attention_backward(batch * (height * width) ** 2, channels, value[1])


_flops.register(_flops_forward, FORWARD, _TRITON_FORWARD)
_flops.register(_flops_backward, BACKWARD, _TRITON_BACKWARD)


class SelfAttention(torch.autograd.Function):
    """`key` is None where it is the query: the gradient of the query is then that of both."""

    @staticmethod
    def forward(
        ctx, query: Tensor, key: Tensor | None, value: Tensor, scale: float, backend: str
    ) -> Tensor:
        ctx.backend = backend
        ctx.options = (scale,) if backend == "triton" else (scale, _backend.allows_tf32())
        run = _TRITON_FORWARD if backend == "triton" else FORWARD
        out, statistics = run(query, key, value, *ctx.options)
        ctx.save_for_backward(query, key, value, out, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, *saved = ctx.saved_tensors
        run = _TRITON_BACKWARD if ctx.backend == "triton" else BACKWARD
        grad_query, grad_key, grad_value = run(grad, query, key, *saved, *ctx.options)
        return grad_query, None if key is None else grad_key, grad_value, None, None
