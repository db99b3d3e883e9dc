# SPDX-License-Identifier: MIT
"""OCRNet: pixels described by their object regions (Yuan, Chen, Wang, ECCV 2020).

The auxiliary logits are the soft regions, at feature resolution and not detached: the main loss
reaches the auxiliary head through them.
"""

from typing import Any

from torch import Tensor, nn

from openseg.backbones import Backbone
from openseg.layers import (
    AtrousObjectContext,
    ConvNormAct,
    IdealObjectContext,
    ObjectContext,
    SegmentationHead,
    ideal_regions,
)
from openseg.models.base import SegmentationModel, SegmentationOutput


class OCRNet(SegmentationModel):
    """OCR block on 512 channels; the tables' FastBaseOCNet, and HRNetV2+OCR.

    Variant "b" has half of the channels. Variant "hrnet", from the code of HRNet's authors, has a
    1×1 convolution in the auxiliary head and no biases in the block; variant "mmseg", of
    mmsegmentation, has no redundant biases anywhere, and a narrower auxiliary head on ResNets.
    """

    variants: tuple[str, ...] = ("openseg", "b", "hrnet", "mmseg")

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        one_map = len(backbone.channels) == 1  # HRNet, whose auxiliary heads have no dropout
        mmseg = self.variant == "mmseg"
        width = 256 if self.variant == "b" else 512
        aux_width = 256 if mmseg else width
        if one_map and self.variant != "b":
            aux_width = aux
        dropout = (0.0 if one_map else 0.1) if mmseg else 0.05
        bias = self.variant not in ("hrnet", "mmseg")
        self.reduce = ConvNormAct(main, width, 3, bias=not mmseg)
        self.context = ObjectContext(
            width, width // 2, width, dropout=dropout, bias=bias, value_bias=bias
        )
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.aux_head = SegmentationHead(
            aux,
            aux_width,
            num_classes,
            kernel_size=1 if self.variant == "hrnet" or (mmseg and one_map) else 3,
            dropout=0.0 if one_map else dropout,
            conv_bias=not mmseg,
        )

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        regions = self.aux_head(aux)
        context = self.context(self.reduce(main), regions)
        return SegmentationOutput(self.classifier(context), {"aux": regions})


class IdealOCRNet(OCRNet):
    """OCRNet that is told the labels: an upper bound, and no network to predict with.

    Variant "background" adds the context of all other regions. "gather" takes the true regions for
    their description alone, "attention" for the attention alone. Weights of `ocrnet` fit all but
    the first.
    """

    variants = ("openseg", "background", "gather", "attention")
    needs_labels = True

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        self.context = IdealObjectContext(
            512,
            256,
            512,
            gather=self.variant != "attention",
            attend=self.variant != "gather",
            background=self.variant == "background",
        )

    def forward(
        self, images: Tensor, labels: Tensor | None = None, ignore_index: int = 255
    ) -> SegmentationOutput:
        """images [B, in_channels, H, W], labels [B, H, W] of integers -> logits."""
        if labels is None:
            raise ValueError("ideal_ocrnet needs the labels of its images: model(images, labels)")
        aux, main = self.features(images)
        features = self.reduce(main)
        height, width = features.shape[2:]
        logits = self.aux_head(aux)
        regions = ideal_regions(labels, (height, width), self.num_classes, ignore_index)
        context = self.context(features, logits, regions)
        return SegmentationOutput(self.classifier(context), {"aux": logits})


class AspOCRNet(SegmentationModel):
    """Object regions beside dilated convolutions; the tables' FastAspOCNet.

    Variant "wide", the older form, has branches of 512 channels on a reduced map.
    """

    variants = ("openseg", "wide")

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        wide = self.variant == "wide"
        one_map = len(backbone.channels) == 1
        width = 512 if wide else 256
        self.reduce = ConvNormAct(main, 512, 3) if wide else nn.Identity()
        self.context = AtrousObjectContext(
            512 if wide else main,
            width,
            width,
            dilations=(24, 48, 72) if one_map else (12, 24, 36),  # as far at twice the resolution
            bias=not wide,
        )
        self.classifier = nn.Conv2d(width, num_classes, 1, bias=not one_map)
        self.aux_head = SegmentationHead(
            aux, 512, num_classes, dropout=0.0 if one_map else 0.1, bias=not one_map
        )

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        regions = self.aux_head(aux)
        context = self.context(self.reduce(main), regions)
        return SegmentationOutput(self.classifier(context), {"aux": regions})
