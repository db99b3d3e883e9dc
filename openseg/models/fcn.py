# SPDX-License-Identifier: MIT
"""Fully convolutional network with a dilated backbone (Long et al. 2015), the tables' FCN-Stride8.

Its classifiers, alone among the networks, have no bias.
"""

from typing import Any

from torch import Tensor

from openseg.backbones import Backbone
from openseg.layers import SegmentationHead
from openseg.models.base import SegmentationModel, SegmentationOutput


class FCN(SegmentationModel):
    """One 3×3 convolution and a classifier on the last map, and the same on the one before."""

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        self.head = SegmentationHead(main, 512, num_classes, bias=False)
        self.aux_head = SegmentationHead(aux, 512, num_classes, bias=False)

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        return SegmentationOutput(self.head(main), {"aux": self.aux_head(aux)})
