# SPDX-License-Identifier: MIT
"""OCNet: object context by self-attention (Yuan, Wang 2018; IJCV 2021).

Two published codes differ: in the original, query and key are one map; in its successor each has
a transform of two convolutions, which the tables call v2. The original also dilates the first
block of a backbone's stage as it does the others.
"""

from typing import Any

from torch import Tensor, nn

from openseg.backbones import Backbone
from openseg.layers import (
    AtrousBaseObjectContext,
    BaseObjectContext,
    ConvNormAct,
    SegmentationHead,
)
from openseg.models.base import SegmentationModel, SegmentationOutput


class BaseOCNet(SegmentationModel):
    """Self-attention on 512 channels, query and key shared."""

    uniform_dilation: tuple[str, ...] = ("openseg",)
    shared = True
    aux_dropout = 0.05

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        self.reduce = ConvNormAct(main, 512, 3)
        self.context = BaseObjectContext(512, 256, 512, shared=self.shared)
        self.classifier = nn.Conv2d(512, num_classes, 1)
        self.aux_head = SegmentationHead(aux, 512, num_classes, dropout=self.aux_dropout)

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        logits = self.classifier(self.context(self.reduce(main)))
        return SegmentationOutput(logits, {"aux": self.aux_head(aux)})


class BaseOCNetV2(BaseOCNet):
    """Query and key apart; no dropout in the auxiliary head."""

    uniform_dilation = ()
    shared = False
    aux_dropout = 0.0


class AspOCNet(SegmentationModel):
    """Self-attention beside dilated convolutions; variant "ocnet" is the OCNet original."""

    variants = ("openseg", "ocnet")
    uniform_dilation = ("ocnet",)

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        ocnet = self.variant == "ocnet"
        self.reduce = ConvNormAct(main, 512, 3)
        self.context = AtrousBaseObjectContext(
            512, 256, 512, ocnet=ocnet, align_corners=self.align_corners
        )
        self.classifier = nn.Conv2d(512, num_classes, 1)
        self.aux_head = SegmentationHead(aux, 512, num_classes, dropout=0.1 if ocnet else 0.0)

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        logits = self.classifier(self.context(self.reduce(main)))
        return SegmentationOutput(logits, {"aux": self.aux_head(aux)})
