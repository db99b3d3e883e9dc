# SPDX-License-Identifier: MIT
"""The kernels of `spatial_gather` with their gradient.

Besides the arguments only [B, K, C] and [B, 2, K] are kept, in float32: the result, which the
gradient of the softmax needs unrounded, and the softmax's greatest logits and inverse sums.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg.ops import _backend
from openseg.ops._kernels import registered
from openseg.ops._layout import empty_map


def _fake_forward(features, logits, scale, allow_tf32=False):
    batch, regions = logits.shape[:2]
    shapes = (batch, regions, features.shape[1]), (batch, 2, regions)
    return tuple(features.new_empty(shape, dtype=torch.float32) for shape in shapes)


def _fake_backward(grad, features, logits, regions, statistics, scale, allow_tf32=False):
    return empty_map(features, features.shape[1]), empty_map(logits, logits.shape[1])


def _flops_forward(features, logits, scale, *options, **others):
    batch, channels, height, width = features
    return 2 * batch * logits[1] * height * width * channels


def _flops_backward(grad, features, logits, regions, statistics, scale, *options, **others):
    return 2 * _flops_forward(features, logits, scale)


FORWARD = registered(
    "spatial_gather",
    "spatial_gather(Tensor features, Tensor logits, float scale, bool allow_tf32=False)"
    " -> (Tensor, Tensor)",
    _fake_forward,
    _flops_forward,
)
BACKWARD = registered(
    "spatial_gather",
    "spatial_gather_backward(Tensor grad, Tensor features, Tensor logits, Tensor regions,"
    " Tensor statistics, float scale, bool allow_tf32=False) -> (Tensor, Tensor)",
    _fake_backward,
    _flops_backward,
)


class SpatialGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, logits: Tensor, scale: float, backend: str) -> Tensor:
        ctx.options, ctx.backend = (scale, _backend.allows_tf32()), backend
        regions, statistics = FORWARD[backend](features, logits, *ctx.options)
        ctx.save_for_backward(features, logits, regions, statistics)
        # not by a `to` that does nothing: torch 2.11 compiles wrong gradients of such a result
        return regions if features.dtype == regions.dtype else regions.to(features.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grads = BACKWARD[ctx.backend](grad, *ctx.saved_tensors, *ctx.options)
        return *grads, None, None
