# SPDX-License-Identifier: MIT
"""ISANet: interlaced sparse self-attention (Huang, Yuan et al. 2019), the tables' Sparse OCNet.

Its convolutions, other than those of the other networks, have no bias before a norm. That of
mmsegmentation (variant "mmseg") has biases in its values, and joins context and features in the
other order, which `load_weights` sees to.
"""

from typing import Any

from torch import Tensor, nn

from openseg.backbones import Backbone
from openseg.layers import ConvNormAct, InterlacedSelfAttention, SegmentationHead
from openseg.models.base import SegmentationModel, SegmentationOutput


class ISANet(SegmentationModel):
    """Long-range, then short-range attention on 512 channels, blocks of 8 × 8."""

    variants = ("openseg", "mmseg")

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        self.reduce = ConvNormAct(main, 512, 3, bias=False)
        mmseg = self.variant == "mmseg"
        dropout = 0.1 if mmseg else 0.05
        self.context = InterlacedSelfAttention(512, 256, 512, dropout=dropout, value_bias=mmseg)
        self.classifier = nn.Conv2d(512, num_classes, 1)
        self.aux_head = SegmentationHead(
            aux, 256 if mmseg else 512, num_classes, dropout=dropout, conv_bias=False
        )

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        logits = self.classifier(self.context(self.reduce(main)))
        return SegmentationOutput(logits, {"aux": self.aux_head(aux)})
