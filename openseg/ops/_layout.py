# SPDX-License-Identifier: MIT
"""Memory formats: an operator returns a map in the format of the map that it got.

Kernels decide by the rule of csrc/common/torch.cpp, which `empty_map` repeats for `register_fake`.
"""

import torch
from torch import Tensor


def in_format_of(given: Tensor, result: Tensor) -> Tensor:
    """The result [B, C', H, W] in the memory format of the given map: channels_last or NCHW.

    A map that is both, as one of a single channel, counts as NCHW.
    """
    last = torch.channels_last
    if given.is_contiguous(memory_format=last) and not given.is_contiguous():
        return result.contiguous(memory_format=last)
    return result


def empty_map(like: Tensor, channels: int) -> Tensor:
    """[B, channels, H, W] with the dtype and layout of the map `like` [B, C, H, W]."""
    batch, old_channels, height, width = like.shape
    if like.stride(1) == 1 and old_channels > 1:
        return like.new_empty((batch, height, width, channels)).permute(0, 3, 1, 2)
    return like.new_empty((batch, channels, height, width))
