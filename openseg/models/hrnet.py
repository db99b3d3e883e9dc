# SPDX-License-Identifier: MIT
"""HRNetV2 (Wang et al. 2019): one small head on the concatenated branches.

It has no auxiliary head, so `aux` of its output is empty.
"""

from typing import Any

from torch import Tensor

from openseg.backbones import Backbone
from openseg.layers import SegmentationHead
from openseg.models.base import SegmentationModel, SegmentationOutput


class HRNetV2(SegmentationModel):
    """A 3×3 convolution and a classifier.

    Variants "hrnet" (its authors' own code) and "mmseg" (mmsegmentation) have a 1×1, the latter
    without a bias before its norm.
    """

    aux_outputs = ()
    variants = ("openseg", "hrnet", "mmseg")

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        _, channels = self.feature_channels
        if self.variant == "openseg":
            self.head = SegmentationHead(channels, channels, num_classes, bias=False)
        else:
            self.head = SegmentationHead(
                channels,
                channels,
                num_classes,
                kernel_size=1,
                dropout=0.0,
                conv_bias=self.variant == "hrnet",
            )

    def forward(self, images: Tensor) -> SegmentationOutput:
        _, main = self.features(images)
        return SegmentationOutput(self.head(main), {})
