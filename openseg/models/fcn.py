# SPDX-License-Identifier: MIT
"""Fully convolutional network with a dilated backbone (Long et al. 2015), the tables' FCN-Stride8.

Its classifiers, alone among the networks, have no bias.
"""

from typing import Any

import torch
from torch import Tensor, nn

from openseg.backbones import Backbone
from openseg.layers import ConvNormAct, SegmentationHead
from openseg.models.base import SegmentationModel, SegmentationOutput


class FCN(SegmentationModel):
    """One 3×3 convolution and a classifier on the last map, and the same on the one before.

    Variant "mmseg", of mmsegmentation, has three convolutions on the last map.
    """

    variants = ("openseg", "mmseg")

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        if self.variant == "mmseg":
            self.head: nn.Module = ConcatHead(main, 512, num_classes)
            self.aux_head = SegmentationHead(aux, 256, num_classes, conv_bias=False)
        else:
            self.head = SegmentationHead(main, 512, num_classes, bias=False)
            self.aux_head = SegmentationHead(aux, 512, num_classes, bias=False)

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        return SegmentationOutput(self.head(main), {"aux": self.aux_head(aux)})


class ConcatHead(nn.Module):
    """Two 3×3 `ConvNormAct`, a third on [x, their result], and a classifier: [B, C, H, W] in."""

    def __init__(self, in_channels: int, hidden_channels: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            ConvNormAct(in_channels, hidden_channels, 3, bias=False),
            ConvNormAct(hidden_channels, hidden_channels, 3, bias=False),
        )
        self.fuse = ConvNormAct(in_channels + hidden_channels, hidden_channels, 3, bias=False)
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(hidden_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.dropout(self.fuse(torch.cat([x, self.convs(x)], dim=1))))
