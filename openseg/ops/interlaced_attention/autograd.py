# SPDX-License-Identifier: MIT
"""The kernels of `interlaced_attention`: those of `self_attention` by groups."""

from openseg.ops import _flops
from openseg.ops._kernels import registered
from openseg.ops.interlaced_attention.groups import spans
from openseg.ops.self_attention.autograd import empty_attention, empty_gradients


def _fake_forward(query, key, value, scale, groups, kind, allow_tf32=False):
    return empty_attention(query, value)


def _fake_backward(grad, query, key, value, out, statistics, scale, groups, kind, allow_tf32=False):
    return empty_gradients(query, key, value)


def _pairs(query, groups, kind):
    pairs = query[0]
    for size, group in zip(query[2:], groups, strict=True):
        pairs *= sum(span.sets * span.members**2 for span in spans(size, group, kind))
    return pairs


def _flops_forward(query, key, value, scale, groups, kind, *options, **others):
    return _flops.attention(_pairs(query, groups, kind), query[1], value[1])


def _flops_backward(
    grad, query, key, value, out, statistics, scale, groups, kind, *options, **others
):
    return _flops.attention_backward(_pairs(query, groups, kind), query[1], value[1])


FORWARD = registered(
    "interlaced_attention",
    "interlaced_attention(Tensor query, Tensor? key, Tensor value, float scale, int[2] groups,"
    " str kind, bool allow_tf32=False) -> (Tensor, Tensor)",
    _fake_forward,
    _flops_forward,
)
BACKWARD = registered(
    "interlaced_attention",
    "interlaced_attention_backward(Tensor grad, Tensor query, Tensor? key, Tensor value,"
    " Tensor out, Tensor statistics, float scale, int[2] groups, str kind,"
    " bool allow_tf32=False) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    _flops_backward,
)
