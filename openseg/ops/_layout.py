# SPDX-License-Identifier: MIT
"""The shape and layout of results without data, for `register_fake`.

Results have the layout of the map given; csrc/common/torch.cpp has the same rule.
"""

from torch import Tensor


def empty_map(like: Tensor, channels: int) -> Tensor:
    """[B, channels, H, W] with the dtype and layout of the map `like` [B, C, H, W]."""
    batch, old_channels, height, width = like.shape
    if like.stride(1) == 1 and old_channels > 1:
        return like.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)
    return like.new_empty((batch, channels, height, width))
