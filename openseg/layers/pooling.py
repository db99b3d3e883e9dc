# SPDX-License-Identifier: MIT
"""Pooling of a map at several scales (Zhao et al.: PSPNet, CVPR 2017)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openseg.layers.conv import ConvNormAct
from openseg.layers.upsample import upsample_like


class PooledContext(nn.Module):
    """Averages over a grid of bins × bins, 1×1 convolution, upsampled to the map's own size."""

    def __init__(
        self, in_channels: int, out_channels: int, bins: int = 1, *, align_corners: bool = True
    ) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(bins)
        self.conv = ConvNormAct(in_channels, out_channels, bias=False)
        self.align_corners = align_corners

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, H, W]."""
        return upsample_like(self.conv(self.pool(x)), x, self.align_corners)


class PyramidPooling(nn.Module):
    """Pyramid pooling module: [pooled at each of `bins`, x], fused by a 3×3 convolution (Zhao et
    al.: PSPNet, 2017).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bins: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            PooledContext(in_channels, out_channels, n, align_corners=align_corners) for n in bins
        )
        channels = in_channels + len(bins) * out_channels
        self.fuse = ConvNormAct(channels, out_channels, 3, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, H, W]."""
        pooled = [level(x) for level in self.levels]
        return self.dropout(self.fuse(torch.cat([*pooled, x], dim=1)))
