# SPDX-License-Identifier: MIT
"""CE2P: context embedding with edge perceiving, for human parsing (Ruan et al., AAAI 2019).

Three further outputs are trained beside the main one: "seg" before the edges are used, "edge" with
two classes, and "aux". The published stride is 16.
"""

from typing import Any

import torch
from torch import Tensor, nn

from openseg.backbones import Backbone
from openseg.layers import (
    AtrousBaseObjectContext,
    AtrousObjectContext,
    BaseObjectContext,
    ConvNormAct,
    ObjectContext,
    SegmentationHead,
    upsample_like,
)
from openseg.models.base import SegmentationModel, SegmentationOutput

_DILATIONS = (6, 12, 18)


class CE2P(SegmentationModel):
    """Edges from the first three maps, a decoder on the context of the last; both make the labels.

    Subclasses give `self.context`, from [B, C, h, w] (and the auxiliary logits) to 512 channels.
    """

    aux_outputs = ("seg", "edge", "aux")
    output_stride = 16
    context: nn.Module

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        if len(backbone.channels) != 4:
            raise ValueError("CE2P networks need a backbone of four maps: a ResNet")
        self.edges = EdgeModule(backbone.channels[:3], self.align_corners)
        self.decoder = Decoder(512, backbone.channels[0], num_classes, self.align_corners)
        self.head = SegmentationHead(
            1024, 256, num_classes, kernel_size=1, dropout=0.0, conv_bias=False
        )
        self.aux_head = SegmentationHead(backbone.channels[2], 512, num_classes, conv_bias=False)

    def forward(self, images: Tensor) -> SegmentationOutput:
        maps = self.backbone(images)
        aux = self.aux_head(maps[2])
        context = self.contextualize(maps[3], aux)
        seg, decoded = self.decoder(context, maps[0])
        edge, edge_features = self.edges(maps[:3])
        main = self.head(torch.cat([decoded, edge_features], dim=1))
        return SegmentationOutput(main, {"seg": seg, "edge": edge, "aux": aux})

    def contextualize(self, features: Tensor, aux: Tensor) -> Tensor:
        return self.context(features)


class CE2PBaseOCNet(CE2P):
    """Self-attention as context (never published in code: the tables' CE2P+BaseOC)."""

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        reduce = ConvNormAct(backbone.channels[3], 512, 3)
        self.context = nn.Sequential(reduce, BaseObjectContext(512, 256, 512))


class CE2PAspOCNet(CE2P):
    """ASP-OC as context (never published in code: the tables' CE2P+ASPOC)."""

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        self.context = nn.Sequential(
            ConvNormAct(backbone.channels[3], 512, 3),
            AtrousBaseObjectContext(512, 256, 512, _DILATIONS, align_corners=self.align_corners),
        )


class CE2POCRNet(CE2P):
    """Object regions as context, on the last map itself: the tables' CE2P+FastBaseOC."""

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        self.context = ObjectContext(backbone.channels[3], 256, 512, dropout=0.0)

    def contextualize(self, features: Tensor, aux: Tensor) -> Tensor:
        return self.context(features, aux)


class CE2PAspOCRNet(CE2P):
    """ASP-OCR as context: the tables' CE2P+FastAspOC."""

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, num_classes, **options)
        self.context = AtrousObjectContext(backbone.channels[3], 256, 512, _DILATIONS)

    def contextualize(self, features: Tensor, aux: Tensor) -> Tensor:
        return self.context(features, aux)


class EdgeModule(nn.Module):
    """Edge logits [B, 2, h, w] and edge features [B, 768, h, w], both at the size of the first map.

    One classifier serves the three maps; a 1×1 convolution weighs its three answers.
    """

    def __init__(self, channels: tuple[int, ...], align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.reduce = nn.ModuleList(ConvNormAct(c, 256, bias=False) for c in channels)
        self.classifier = nn.Conv2d(256, 2, 3, padding=1)
        self.fuse = nn.Conv2d(2 * len(channels), 2, 1)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        features = [reduce(x) for reduce, x in zip(self.reduce, maps, strict=True)]
        edges = [self.classifier(x) for x in features]
        return self.fuse(self._at_first(edges)), self._at_first(features)

    def _at_first(self, maps: list[Tensor]) -> Tensor:
        upsampled = [upsample_like(x, maps[0], self.align_corners) for x in maps[1:]]
        return torch.cat([maps[0], *upsampled], dim=1)


class Decoder(nn.Module):
    """Context brought to the size of the first map and joined with it (DeepLabV3+).

    Returns logits [B, K, h, w] and the features [B, 256, h, w] that they are made from.
    """

    def __init__(
        self, channels: int, first_channels: int, num_classes: int, align_corners: bool
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.reduce = ConvNormAct(channels, 256, bias=False)
        self.reduce_first = ConvNormAct(first_channels, 48, bias=False)
        self.fuse = nn.Sequential(
            ConvNormAct(256 + 48, 256, bias=False), ConvNormAct(256, 256, bias=False)
        )
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def forward(self, context: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
        context = upsample_like(self.reduce(context), first, self.align_corners)
        joined = torch.cat([context, self.reduce_first(first)], dim=1)
        decoded = self.dropout(self.fuse(joined))
        return self.classifier(decoded), decoded
