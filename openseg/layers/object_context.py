# SPDX-License-Identifier: MIT
"""Object-contextual representations (Yuan, Chen, Wang: OCR, ECCV 2020, section 3.2).

The norms of the key and value transforms see the K regions of each image alone, so in training
their statistics come from B × K samples.
"""

import torch
from torch import Tensor, nn

from openseg import ops
from openseg.layers.conv import ConvNormAct, two_convs


class ObjectContext(nn.Module):
    """Pixels attend to the representations of K object regions.

    Regions are gathered with a softmax over the pixels of each class's logits; the context that
    pixels attend to is projected back to `in_channels`, concatenated as [context, features] and
    fused by a 1×1 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        out_channels: int | None = None,
        *,
        dropout: float = 0.05,
        bias: bool = True,
        value_bias: bool = True,
    ) -> None:
        """`out_channels=None` leaves out the fusion: the result is the context, `in_channels`.
        `value_bias`: of the convolutions before and after the attention's sum.
        """
        super().__init__()
        self.query = two_convs(in_channels, key_channels, bias=bias)
        self.key = two_convs(in_channels, key_channels, bias=bias)
        self.value = ConvNormAct(in_channels, key_channels, bias=value_bias)
        self.project = ConvNormAct(key_channels, in_channels, bias=value_bias)
        self.fuse = None
        if out_channels is not None:
            self.fuse = ConvNormAct(2 * in_channels, out_channels, bias=bias)
            self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """features [B, in, H, W], logits [B, K, H, W] of the soft regions -> [B, out, H, W]."""
        regions = ops.spatial_gather(features, logits)
        regions = regions.transpose(1, 2).unsqueeze(3)  # [B, in, K, 1]
        key = self.key(regions).squeeze(3).transpose(1, 2)
        value = self.value(regions).squeeze(3).transpose(1, 2)
        context = self.project(ops.object_attention(self.query(features), key, value))
        if self.fuse is None:
            return context
        return self.dropout(self.fuse(torch.cat([context, features], dim=1)))
