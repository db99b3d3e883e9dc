# SPDX-License-Identifier: MIT
"""Memory formats: an operator returns a map in the format of the map that it got."""

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
