# SPDX-License-Identifier: MIT
"""Bilinear resizing of feature maps inside a network; logits are never resized there."""

import torch.nn.functional as F
from torch import Tensor


def upsample_like(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """x [B, C, h, w] at the height and width of `like`, a map."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=align_corners)
