# SPDX-License-Identifier: MIT
"""Parallel dilated convolutions beside a branch of context (Chen et al.: DeepLabV3, 2017).

Only the branch of context differs: an average over the image, self-attention, or object regions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openseg.layers.conv import ConvNormAct, NormAct
from openseg.layers.object_context import ObjectContext
from openseg.layers.pooling import PooledContext
from openseg.layers.self_attention import SelfAttention


class AtrousPyramid(nn.Module):
    """[context, 1×1, and a 3×3 convolution for each dilation], fused by a 1×1 convolution."""

    def __init__(
        self,
        context: nn.Module,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        dilations: Sequence[int],
        *,
        bias: bool = False,
        dropout: float = 0.1,
        fuse_kernel: int = 1,
    ) -> None:
        """`context(x, …)` returns [B, hidden, H, W], as the other branches do."""
        super().__init__()
        self.context = context
        branches = [ConvNormAct(in_channels, hidden_channels, bias=bias)]
        branches += [
            ConvNormAct(in_channels, hidden_channels, 3, dilation=d, bias=bias) for d in dilations
        ]
        self.branches = nn.ModuleList(branches)
        self.fuse = ConvNormAct(
            hidden_channels * (len(branches) + 1), out_channels, fuse_kernel, bias=bias
        )
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor, *context_arguments: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, H, W]."""
        maps = [self.context(x, *context_arguments), *(branch(x) for branch in self.branches)]
        return self.dropout(self.fuse(torch.cat(maps, dim=1)))


class AtrousPyramidPooling(AtrousPyramid):
    """ASPP of DeepLabV3 (Chen et al. 2017): the context is the average over the image.

    [B, C, H, W] -> [B, out, H, W].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dilations: Sequence[int] = (12, 24, 36),
        *,
        align_corners: bool = True,
        fuse_kernel: int = 1,
    ) -> None:
        context = PooledContext(in_channels, out_channels, align_corners=align_corners)
        super().__init__(
            context,
            in_channels,
            out_channels,
            out_channels,
            dilations,
            fuse_kernel=fuse_kernel,
        )


class AtrousBaseObjectContext(AtrousPyramid):
    """ASP-OC (Yuan, Wang: OCNet, 2018): self-attention at half of the resolution as context.

    [B, C, H, W] -> [B, out, H, W].
    In the form of `ocnet` the attention is shared, its values as wide as the hidden channels, and
    a 1×1 convolution stands before the norm that ends the branch.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        dilations: Sequence[int] = (12, 24, 36),
        *,
        ocnet: bool = False,
        align_corners: bool = True,
    ) -> None:
        key_channels = hidden_channels // 2
        attention = SelfAttention(
            hidden_channels,
            key_channels,
            hidden_channels if ocnet else key_channels,
            shared=ocnet,
            scale=2,
            align_corners=align_corners,
        )
        context = nn.Sequential(
            ConvNormAct(in_channels, hidden_channels, 3),
            attention,
            ConvNormAct(hidden_channels, hidden_channels) if ocnet else NormAct(hidden_channels),
        )
        super().__init__(context, in_channels, hidden_channels, out_channels, dilations)


class RegionContext(nn.Module):
    """A 3×3 convolution, and the object context of its map alone."""

    def __init__(
        self, in_channels: int, hidden_channels: int, key_channels: int, *, value_bias: bool = True
    ) -> None:
        super().__init__()
        self.reduce = ConvNormAct(in_channels, hidden_channels, 3)
        self.attention = ObjectContext(hidden_channels, key_channels, value_bias=value_bias)

    def forward(self, x: Tensor, logits: Tensor) -> Tensor:
        return self.attention(self.reduce(x), logits)


class AtrousObjectContext(AtrousPyramid):
    """ASP-OCR (Yuan, Chen, Wang 2020): the context of object regions, without the map that it was
    computed from.

    features [B, C, H, W], logits [B, K, H, W] of the soft regions -> [B, out, H, W].
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        dilations: Sequence[int] = (12, 24, 36),
        *,
        bias: bool = True,
    ) -> None:
        key_channels = hidden_channels // 2
        context = RegionContext(in_channels, hidden_channels, key_channels, value_bias=bias)
        super().__init__(context, in_channels, hidden_channels, out_channels, dilations, bias=bias)
