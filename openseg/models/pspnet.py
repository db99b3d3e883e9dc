# SPDX-License-Identifier: MIT
"""Pyramid scene parsing network (Zhao et al., CVPR 2017).

In training, a batch of one image has a single sample for the norm of the coarsest level, and
PyTorch refuses that.
"""

from typing import Any

from torch import Tensor, nn

from openseg.backbones import Backbone
from openseg.layers import PyramidPooling, SegmentationHead
from openseg.models.base import SegmentationModel, SegmentationOutput


class PSPNet(SegmentationModel):
    """Pyramid pooling of the last map on 512 channels.

    Variant "mmseg", of mmsegmentation, has a narrower auxiliary head without a redundant bias.
    """

    variants = ("openseg", "mmseg")

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        self.context = PyramidPooling(main, 512, align_corners=self.align_corners)
        self.classifier = nn.Conv2d(512, num_classes, 1)
        mmseg = self.variant == "mmseg"
        width = 256 if mmseg else 512
        self.aux_head = SegmentationHead(aux, width, num_classes, conv_bias=not mmseg)

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        logits = self.classifier(self.context(main))
        return SegmentationOutput(logits, {"aux": self.aux_head(aux)})
