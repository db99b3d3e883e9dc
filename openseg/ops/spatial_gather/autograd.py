# SPDX-License-Identifier: MIT
"""The kernels of `spatial_gather` with their gradient.

Besides the arguments only [B, K, C] and [B, 2, K] are kept, in float32: the result, which the
gradient of the softmax needs unrounded, and the softmax's greatest logits and inverse sums.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg import _ext
from openseg.ops import _backend
from openseg.ops._layout import empty_map

FORWARD = _ext.operator("spatial_gather")
BACKWARD = _ext.operator("spatial_gather_backward")

if FORWARD is not None:

    @torch.library.register_fake("openseg::spatial_gather")
    def _(features, logits, scale, allow_tf32=False):
        batch, regions = logits.shape[:2]
        shapes = (batch, regions, features.shape[1]), (batch, 2, regions)
        return tuple(features.new_empty(shape, dtype=torch.float32) for shape in shapes)

    @torch.library.register_fake("openseg::spatial_gather_backward")
    def _(grad, features, logits, regions, statistics, scale, allow_tf32=False):
        return empty_map(features, features.shape[1]), empty_map(logits, logits.shape[1])


class SpatialGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, logits: Tensor, scale: float) -> Tensor:
        ctx.options = scale, _backend.allows_tf32()
        regions, statistics = FORWARD(features, logits, *ctx.options)
        ctx.save_for_backward(features, logits, regions, statistics)
        return regions.to(features.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *BACKWARD(grad, *ctx.saved_tensors, *ctx.options), None
