# SPDX-License-Identifier: MIT
"""DeepLabV3 (Chen et al. 2017) with the dilations of output stride 8.

In training, a batch of one image has a single sample for the norm of the image's average, and
PyTorch refuses that.
"""

from typing import Any

from torch import Tensor, nn

from openseg.backbones import Backbone
from openseg.layers import AtrousPyramidPooling, SegmentationHead
from openseg.models.base import SegmentationModel, SegmentationOutput


class DeepLabV3(SegmentationModel):
    """Atrous spatial pyramid pooling of the last map on 256 channels."""

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        self.context = AtrousPyramidPooling(main, 256, align_corners=self.align_corners)
        self.classifier = nn.Conv2d(256, num_classes, 1)
        self.aux_head = SegmentationHead(aux, 512, num_classes)

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        logits = self.classifier(self.context(main))
        return SegmentationOutput(logits, {"aux": self.aux_head(aux)})
