# SPDX-License-Identifier: MIT
"""What a backbone is to a network; the last map is the one for the main head."""

from torch import Tensor, nn


class Backbone(nn.Module):
    """images [B, in_channels, H, W] -> a list of maps, finest first, with `channels[i]` each."""

    in_channels: int
    channels: tuple[int, ...]

    def forward(self, images: Tensor) -> list[Tensor]:
        raise NotImplementedError
