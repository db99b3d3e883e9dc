# SPDX-License-Identifier: MIT
"""OCRNet: pixels described by their object regions (Yuan, Chen, Wang, ECCV 2020).

The auxiliary logits are the soft regions, at feature resolution and not detached: the main loss
reaches the auxiliary head through them.
"""

from typing import Any

from torch import Tensor, nn

from openseg.backbones import Backbone
from openseg.layers import AtrousObjectContext, ConvNormAct, ObjectContext, SegmentationHead
from openseg.models.base import SegmentationModel, SegmentationOutput


class OCRNet(SegmentationModel):
    """OCR block on 512 channels; the tables' FastBaseOCNet."""

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        self.reduce = ConvNormAct(main, 512, 3)
        self.context = ObjectContext(512, 256, 512)
        self.classifier = nn.Conv2d(512, num_classes, 1)
        self.aux_head = SegmentationHead(aux, 512, num_classes, dropout=0.05)

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        regions = self.aux_head(aux)
        context = self.context(self.reduce(main), regions)
        return SegmentationOutput(self.classifier(context), {"aux": regions})


class AspOCRNet(SegmentationModel):
    """Object regions beside dilated convolutions; the tables' FastAspOCNet.

    Variant "wide", the older form, has branches of 512 channels on a reduced map.
    """

    variants = ("openseg", "wide")

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        wide = self.variant == "wide"
        width = 512 if wide else 256
        self.reduce = ConvNormAct(main, 512, 3) if wide else nn.Identity()
        self.context = AtrousObjectContext(512 if wide else main, width, width, bias=not wide)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.aux_head = SegmentationHead(aux, 512, num_classes)

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        regions = self.aux_head(aux)
        context = self.context(self.reduce(main), regions)
        return SegmentationOutput(self.classifier(context), {"aux": regions})
