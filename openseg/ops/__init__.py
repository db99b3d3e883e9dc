# SPDX-License-Identifier: MIT
"""Pure functions on tensors, each a folder with a reference and its kernels.

`torch.ops.openseg.*` is private: arguments are checked, backends chosen and gradients added here.
"""

from openseg.ops.confusion_matrix import confusion_matrix
from openseg.ops.inplace_abn import inplace_abn
from openseg.ops.interlaced_attention import interlaced_attention
from openseg.ops.object_attention import object_attention
from openseg.ops.self_attention import self_attention
from openseg.ops.spatial_gather import spatial_gather
from openseg.ops.upsample_argmax import upsample_argmax
from openseg.ops.upsample_cross_entropy import Ohem, upsample_cross_entropy

__all__ = [
    "Ohem",
    "confusion_matrix",
    "inplace_abn",
    "interlaced_attention",
    "object_attention",
    "self_attention",
    "spatial_gather",
    "upsample_argmax",
    "upsample_cross_entropy",
]
