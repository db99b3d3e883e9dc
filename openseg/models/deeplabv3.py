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
    """Atrous spatial pyramid pooling of the last map on 256 channels.

    Variant "mmseg", of mmsegmentation, has 512 of them, fused by a 3×3 convolution.
    """

    variants = ("openseg", "mmseg")

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        aux, main = self.feature_channels
        mmseg = self.variant == "mmseg"
        width = 512 if mmseg else 256
        self.context = AtrousPyramidPooling(
            main, width, align_corners=self.align_corners, fuse_kernel=3 if mmseg else 1
        )
        self.classifier = nn.Conv2d(width, num_classes, 1)
        aux_width = 256 if mmseg else 512
        self.aux_head = SegmentationHead(aux, aux_width, num_classes, conv_bias=not mmseg)

    def forward(self, images: Tensor) -> SegmentationOutput:
        aux, main = self.features(images)
        logits = self.classifier(self.context(main))
        return SegmentationOutput(logits, {"aux": self.aux_head(aux)})
