# SPDX-License-Identifier: MIT
"""Pure functions on tensors; one folder for each operator."""

from openseg.ops.interlaced_attention import interlaced_attention
from openseg.ops.object_attention import object_attention
from openseg.ops.self_attention import self_attention
from openseg.ops.spatial_gather import spatial_gather
from openseg.ops.upsample_cross_entropy import upsample_cross_entropy

__all__ = [
    "interlaced_attention",
    "object_attention",
    "self_attention",
    "spatial_gather",
    "upsample_cross_entropy",
]
