# SPDX-License-Identifier: MIT
"""The CPU kernel of `spatial_gather` with its gradient.

Besides the arguments only [B, K, C] and [B, 2, K] are kept, in float32: the result, which the
gradient of the softmax needs unrounded, and the softmax's greatest logits and inverse sums.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from openseg import _ext
from openseg.ops import _flops
from openseg.ops._layout import empty_map

FORWARD = _ext.operator("spatial_gather")
BACKWARD = _ext.operator("spatial_gather_backward")

if FORWARD is not None:

    @torch.library.register_fake("openseg::spatial_gather")
    def _(features, logits, scale):
        batch, regions = logits.shape[:2]
        shapes = (batch, regions, features.shape[1]), (batch, 2, regions)
        return tuple(features.new_empty(shape, dtype=torch.float32) for shape in shapes)

    @torch.library.register_fake("openseg::spatial_gather_backward")
    def _(grad, features, logits, regions, statistics, scale):
        return empty_map(features, features.shape[1]), empty_map(logits, logits.shape[1])


def _flops_forward(features, logits, scale, **options):
    batch, channels, height, width = features
    return 2 * batch * logits[1] * height * width * channels


def _flops_backward(grad, features, logits, regions, statistics, scale, **options):
    return 2 * _flops_forward(features, logits, scale)


_flops.register(FORWARD, _flops_forward)
_flops.register(BACKWARD, _flops_backward)


class SpatialGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: Tensor, logits: Tensor, scale: float) -> Tensor:
        regions, statistics = FORWARD(features, logits, scale)
        ctx.save_for_backward(features, logits, regions, statistics)
        ctx.scale = scale
        return regions.to(features.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *BACKWARD(grad, *ctx.saved_tensors, ctx.scale), None
