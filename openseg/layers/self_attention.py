# SPDX-License-Identifier: MIT
"""Object context by self-attention over all pixels (Yuan, Wang: OCNet, 2018).

The output projection starts at zero, so a fresh block passes its input through the fusion alone.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openseg import ops
from openseg.layers.conv import ConvNormAct, two_convs
from openseg.layers.upsample import upsample_like


class SelfAttention(nn.Module):
    """Context of each pixel from all pixels: [B, C, H, W] -> [B, C, H, W].

    `scale` > 1 takes the maximum over squares of that side first and upsamples the context after.
    In the `shared` form, that of the OCNet original, query and key are one map and one convolution
    makes it; otherwise each has its own two.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        value_channels: int,
        *,
        shared: bool = False,
        scale: int = 1,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.align_corners = align_corners
        one_or_two = ConvNormAct if shared else two_convs
        self.query = one_or_two(in_channels, key_channels)
        self.key = None if shared else two_convs(in_channels, key_channels)
        self.value = nn.Conv2d(in_channels, value_channels, 1)
        self.project = nn.Conv2d(value_channels, in_channels, 1)
        for parameter in self.project.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        small = F.max_pool2d(x, self.scale) if self.scale > 1 else x
        query = self.query(small)
        key = query if self.key is None else self.key(small)
        context = self.project(ops.self_attention(query, key, self.value(small)))
        if self.scale > 1:
            context = upsample_like(context, x, self.align_corners)
        return context


class BaseObjectContext(nn.Module):
    """[context, x], fused by a 1×1 convolution: [B, C, H, W] -> [B, out, H, W]."""

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        out_channels: int,
        *,
        shared: bool = False,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(in_channels, key_channels, key_channels, shared=shared)
        self.fuse = ConvNormAct(2 * in_channels, out_channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fuse(torch.cat([self.attention(x), x], dim=1)))
