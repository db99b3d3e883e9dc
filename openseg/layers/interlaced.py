# SPDX-License-Identifier: MIT
"""Interlaced sparse self-attention (Huang, Yuan et al. 2019; Yuan et al.: OCNet, IJCV 2021).

As published, the zeros that pad the map take part in the attention and in the batch statistics;
`mask_pad` leaves them out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openseg import ops
from openseg.layers.conv import ConvNormAct, two_convs


class InterlacedStage(nn.Module):
    """Attention within "long" or "short" groups, and a 1×1 convolution: [B, C, H, W] in and out.

    H and W are multiples of `groups`, or of any size with `mask_pad` (`ops.interlaced_attention`).
    """

    def __init__(
        self,
        channels: int,
        key_channels: int,
        groups: tuple[int, int],
        kind: str,
        *,
        value_bias: bool = False,
    ) -> None:
        super().__init__()
        self.groups = groups
        self.kind = kind
        self.query = two_convs(channels, key_channels, bias=False)
        self.key = two_convs(channels, key_channels, bias=False)
        self.value = nn.Conv2d(channels, channels, 1, bias=value_bias)
        self.project = ConvNormAct(channels, channels, bias=False)

    def forward(self, x: Tensor, mask_pad: bool = False) -> Tensor:
        context = ops.interlaced_attention(
            self.query(x),
            self.key(x),
            self.value(x),
            groups=self.groups,
            kind=self.kind,
            mask_pad=mask_pad,
        )
        return self.project(context)


class InterlacedSelfAttention(nn.Module):
    """A long-range stage, a short-range one; [x, context] fused by a 1×1 convolution (ISA: Huang,
    Yuan et al. 2019).
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        out_channels: int,
        *,
        groups: tuple[int, int] = (8, 8),
        dropout: float = 0.05,
        value_bias: bool = False,
        mask_pad: bool = False,
    ) -> None:
        """`groups`: rows and columns of a short-range block.

        mask_pad: neither attend to the zeros around the map nor count them in the statistics of the
            norms, which saves a copy too. The published networks were trained with them.
        """
        super().__init__()
        self.groups = groups
        self.mask_pad = mask_pad
        self.long_range, self.short_range = (
            InterlacedStage(in_channels, key_channels, groups, kind, value_bias=value_bias)
            for kind in ("long", "short")
        )
        self.fuse = ConvNormAct(2 * in_channels, out_channels, bias=False)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, out, H, W]."""
        context = self._attend(x) if self.mask_pad else self._attend_padded(x)
        return self.dropout(self.fuse(torch.cat([x, context], dim=1)))

    def _attend(self, x: Tensor) -> Tensor:
        return self.short_range(self.long_range(x, self.mask_pad), self.mask_pad)

    def _attend_padded(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        down, across = self.groups
        rows = (height + down - 1) // down * down - height  # to be added
        columns = (width + across - 1) // across * across - width
        top, left = rows // 2, columns // 2
        context = self._attend(F.pad(x, (left, columns - left, top, rows - top)))
        return context[:, :, top : top + height, left : left + width]
