# SPDX-License-Identifier: MIT
"""The kernels of `interlaced_attention` with their gradient: that of `self_attention` by groups."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg import _ext
from openseg.ops import _backend, _flops, _triton
from openseg.ops.interlaced_attention.groups import spans
from openseg.ops.self_attention.autograd import empty_attention, empty_gradients


def _fake_forward(query, key, value, scale, groups, kind, allow_tf32=False):
    return empty_attention(query, value)


def _fake_backward(grad, query, key, value, out, statistics, scale, groups, kind, allow_tf32=False):
    return empty_gradients(query, key, value)


FORWARD = _ext.operator("interlaced_attention")
BACKWARD = _ext.operator("interlaced_attention_backward")

if FORWARD is not None:
    torch.library.register_fake("openseg::interlaced_attention")(_fake_forward)
    torch.library.register_fake("openseg::interlaced_attention_backward")(_fake_backward)

_TRITON_FORWARD = _triton.operator(
    "interlaced_attention",
    "interlaced_attention(Tensor query, Tensor? key, Tensor value, float scale, int[2] groups,"
    " str kind) -> (Tensor, Tensor)",
    _fake_forward,
)
_TRITON_BACKWARD = _triton.operator(
    "interlaced_attention",
    "interlaced_attention_backward(Tensor grad, Tensor query, Tensor? key, Tensor value,"
    " Tensor out, Tensor statistics, float scale, int[2] groups, str kind)"
    " -> (Tensor, Tensor, Tensor)",
    _fake_backward,
)


def _pairs(query, groups, kind):
    pairs = query[0]
    for size, group in zip(query[2:], groups, strict=True):
        pairs *= sum(span.sets * span.members**2 for span in spans(size, group, kind))
    return pairs


def _flops_forward(query, key, value, scale, groups, kind, **options):
    return _flops.attention(_pairs(query, groups, kind), query[1], value[1])


def _flops_backward(grad, query, key, value, out, statistics, scale, groups, kind, **options):
    return _flops.attention_backward(_pairs(query, groups, kind), query[1], value[1])


_flops.register(_flops_forward, FORWARD, _TRITON_FORWARD)
_flops.register(_flops_backward, BACKWARD, _TRITON_BACKWARD)


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
        backend: str,
    ) -> Tensor:
        ctx.backend = backend
        ctx.options = scale, groups, kind
        if backend != "triton":
            ctx.options = *ctx.options, _backend.allows_tf32()
        run = _TRITON_FORWARD if backend == "triton" else FORWARD
        out, statistics = run(query, key, value, *ctx.options)
        ctx.save_for_backward(query, key, value, out, statistics)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, *saved = ctx.saved_tensors
        run = _TRITON_BACKWARD if ctx.backend == "triton" else BACKWARD
        grads = run(grad, query, key, *saved, *ctx.options)
        return grads[0], None if key is None else grads[1], grads[2], *[None] * 4
