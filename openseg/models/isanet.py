# SPDX-License-Identifier: MIT
"""ISANet: interlaced sparse self-attention (Huang, Yuan et al. 2019), the tables' Sparse OCNet.

Its convolutions, other than those of the other networks, have no bias before a norm.
"""

from typing import Any

from torch import Tensor, nn

from openseg.backbones import Backbone
from openseg.layers import ConvNormAct, InterlacedSelfAttention, SegmentationHead
from openseg.models.base import SegmentationModel, SegmentationOutput


class ISANet(SegmentationModel):
    """Long-range, then short-range attention on 512 channels, blocks of 8 × 8."""

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        self.reduce = ConvNormAct(main, 512, 3, bias=False)
        self.context = InterlacedSelfAttention(512, 256, 512)
        self.classifier = nn.Conv2d(512, num_classes, 1)
        self.aux_head = SegmentationHead(aux, 512, num_classes, dropout=0.05, conv_bias=False)

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        logits = self.classifier(self.context(self.reduce(main)))
        return SegmentationOutput(logits, {"aux": self.aux_head(aux)})
