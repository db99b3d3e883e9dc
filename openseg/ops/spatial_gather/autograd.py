# SPDX-License-Identifier: MIT
"""The kernels of `spatial_gather` with their gradient.

Besides the arguments only [B, K, C] and [B, 2, K] are kept, in float32: the result, which the
gradient of the softmax needs unrounded, and the softmax's greatest logits and inverse sums.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg import _ext
from openseg.ops import _backend, _flops, _triton
from openseg.ops._layout import empty_map


def _fake_forward(features, logits, scale, allow_tf32=False):
    batch, regions = logits.shape[:2]
    shapes = (batch, regions, features.shape[1]), (batch, 2, regions)
    return tuple(features.new_empty(shape, dtype=torch.float32) for shape in shapes)


def _fake_backward(grad, features, logits, regions, statistics, scale, allow_tf32=False):
    return empty_map(features, features.shape[1]), empty_map(logits, logits.shape[1])


FORWARD = _ext.operator("spatial_gather")
BACKWARD = _ext.operator("spatial_gather_backward")

if FORWARD is not None:
    torch.library.register_fake("openseg::spatial_gather")(_fake_forward)
    torch.library.register_fake("openseg::spatial_gather_backward")(_fake_backward)

_TRITON_FORWARD = _triton.operator(
    "spatial_gather",
    "spatial_gather(Tensor features, Tensor logits, float scale, bool allow_tf32=False)"
    " -> (Tensor, Tensor)",
    _fake_forward,
)
_TRITON_BACKWARD = _triton.operator(
    "spatial_gather",
    "spatial_gather_backward(Tensor grad, Tensor features, Tensor logits, Tensor regions,"
    " Tensor statistics, float scale, bool allow_tf32=False) -> (Tensor, Tensor)",
    _fake_backward,
)


def _flops_forward(features, logits, scale, **options):
    batch, channels, height, width = features
    return 2 * batch * logits[1] * height * width * channels


def _flops_backward(grad, features, logits, regions, statistics, scale, **options):
    return 2 * _flops_forward(features, logits, scale)


_flops.register(_flops_forward, FORWARD, _TRITON_FORWARD)
_flops.register(_flops_backward, BACKWARD, _TRITON_BACKWARD)


class SpatialGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, logits: Tensor, scale: float, backend: str) -> Tensor:
        ctx.options, ctx.backend = (scale, _backend.allows_tf32()), backend
        run = _TRITON_FORWARD if backend == "triton" else FORWARD
        regions, statistics = run(features, logits, *ctx.options)
        ctx.save_for_backward(features, logits, regions, statistics)
        return regions.to(features.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        run = _TRITON_BACKWARD if ctx.backend == "triton" else BACKWARD
        return *run(grad, *ctx.saved_tensors, *ctx.options), None, None
