# SPDX-License-Identifier: MIT
"""What all networks share: low-resolution logits out of `forward`, labels out of `predict`.

A network never upsamples its logits: the loss and `predict` do, without storing [B, K, H, W].
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from openseg import ops
from openseg.backbones import Backbone
from openseg.layers import set_activation


class SegmentationOutput(NamedTuple):
    """Logits at feature resolution.

    main: [B, K, h, w], the prediction. aux: further logits by name, [B, K', h', w'] each; the
    auxiliary head of the penultimate map is "aux".
    """

    main: Tensor
    aux: dict[str, Tensor]


class SegmentationModel(nn.Module):
    """Base of the networks: `backbone` and, in every other parameter, the head.

    Attributes: `num_classes`; `in_channels`; `align_corners` of every upsampling, in the network
    and after it; `arguments`, with which `create_model(**model.arguments)` builds the same again.
    """

    variants: tuple[str, ...] = ("openseg",)
    uniform_dilation: tuple[str, ...] = ()  # the variants whose backbone has it
    aux_outputs: tuple[str, ...] = ("aux",)  # the names in `aux` of what `forward` returns
    output_stride = 8
    needs_labels = False  # whether `forward` takes labels too
    backbone: Backbone

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        variant: str = "openseg",
        align_corners: bool = True,
    ) -> None:
        """`variant`: which published form of the network, one of `variants`."""
        super().__init__()
        if variant not in self.variants:
            raise ValueError(f"variant must be one of {self.variants}, got {variant!r}")
        self.variant = variant
        self.backbone = backbone
        self.num_classes = num_classes
        self.in_channels = backbone.in_channels
        self.align_corners = align_corners
        self.arguments: dict[str, Any] = {}

    def forward(self, images: Tensor) -> SegmentationOutput:
        """images [B, in_channels, H, W], normalized as the network was trained -> logits."""
        raise NotImplementedError

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maps for the auxiliary and for the main head: one map where there is one alone."""
        maps = self.backbone(images)[-2:]
        return maps[0], maps[-1]

    @property
    def feature_channels(self) -> tuple[int, int]:
        """The channels of the two maps of `features`."""
        channels = self.backbone.channels[-2:]
        return channels[0], channels[-1]

    def use_activation(self, name: str) -> None:
        """Exchange the activation of the heads: "relu", or "leaky_relu" of InPlaceABN (0.01)."""
        set_activation(self, name)
        self.arguments["activation"] = name

    @torch.no_grad()
    def predict(
        self, images: Tensor, confidence: bool = False, size: tuple[int, int] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Label every pixel. Call `eval()` first: the mode of the network is left as it is.

        Args:
            images: [B, in_channels, H, W].
            confidence: also return the softmax probability of each label.
            size: (height, width) of the result; None is that of the images.

        Returns:
            labels [B, H, W], uint8 up to 256 classes and int64 above; with `confidence` the pair
            (labels, float32 [B, H, W]).
        """
        height, width = size or images.shape[-2:]
        logits = self(images).main
        return ops.upsample_argmax(
            logits, (height, width), confidence, align_corners=self.align_corners
        )
