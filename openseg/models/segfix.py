# SPDX-License-Identifier: MIT
"""SegFix (Yuan, Xie, Chen, Wang, ECCV 2020): labels near a border are taken from further inside.

The network sees images alone, not the labels that it mends, so it serves those of any network. The
published code moved labels by bilinear sampling; here they are only ever copied.
"""

from typing import Any

import torch
from torch import Tensor

from openseg import ops
from openseg.backbones import Backbone
from openseg.layers import SegmentationHead
from openseg.models.base import SegmentationModel, SegmentationOutput

DIRECTIONS = ((0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1))
"""(rows down, columns right) of each class of directions: angles -180°, -135°, …, 135°."""
MIRRORED_SCORES = ((2, 6), (3, 5), (7, 9))
"""Channels of `SegFix.scores` that trade places in a mirrored image: left and right."""


class SegFix(SegmentationModel):
    """A head for the mask, interior and boundary, and one for eight directions, into the region.

    `main` of the output has the logits of the mask [B, 2, h, w], `aux["direction"]` those of the
    directions [B, 8, h, w]. The number of classes is two, whatever is asked for.
    """

    aux_outputs = ("direction",)

    def __init__(self, backbone: Backbone, num_classes: int, **options: Any) -> None:
        super().__init__(backbone, 2, **options)
        _, channels = self.feature_channels
        self.mask_head, self.direction_head = (
            SegmentationHead(
                channels, 256, count, kernel_size=1, dropout=0.0, conv_bias=False, bias=False
            )
            for count in (2, len(DIRECTIONS))
        )

    def forward(self, images: Tensor) -> SegmentationOutput:
        _, features = self.features(images)
        return SegmentationOutput(
            self.mask_head(features), {"direction": self.direction_head(features)}
        )

    def scores(self, images: Tensor) -> Tensor:
        """Probabilities of the mask and logits of the directions, [B, 2 + 8, h, w].

        They are what windows are averaged by, and upsampled, in the published test.
        """
        output = self(images)
        return torch.cat([output.main.softmax(1), output.aux["direction"]], 1)

    def offsets_of(self, scores: Tensor, size: tuple[int, int]) -> Tensor:
        """Where each pixel's label is to be taken from, int64 [B, 2, H, W]: (down, right).

        Zero away from borders, and one step otherwise. `size`: (height, width) of the result.
        """
        mask, direction = (
            ops.upsample_argmax(part, size, align_corners=self.align_corners)
            for part in scores.split((2, len(DIRECTIONS)), dim=1)
        )
        assert isinstance(mask, Tensor)
        assert isinstance(direction, Tensor)
        steps = torch.tensor(DIRECTIONS, device=scores.device)[direction.long()]
        return (steps * mask.unsqueeze(-1)).permute(0, 3, 1, 2)

    @torch.no_grad()
    def predict_offsets(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`offsets_of` images [B, C, h, w] in one pass; of their size unless another is given."""
        return self.offsets_of(self.scores(images), size or (images.shape[-2], images.shape[-1]))


def refine_labels(labels: Tensor, offsets: Tensor, scale: int = 2) -> Tensor:
    """Give each pixel the label at `scale` times its offset, of the nearest pixel inside the image.

    Args:
        labels: [B, H, W], any dtype.
        offsets: [B, 2, H, W] of `SegFix.predict_offsets`, integers.
        scale: steps to go; 2 is published.

    Raises:
        ValueError: sizes that differ; offsets that are no integers.
    """
    batch, height, width = labels.shape
    if offsets.shape != (batch, 2, height, width) or offsets.is_floating_point():
        raise ValueError(
            f"offsets must be integers [{batch}, 2, {height}, {width}], two for each of the labels "
            f"{tuple(labels.shape)}, got {offsets.dtype} {tuple(offsets.shape)}"
        )
    rows = torch.arange(height, device=labels.device)[:, None] + scale * offsets[:, 0]
    columns = torch.arange(width, device=labels.device) + scale * offsets[:, 1]
    places = rows.clamp(0, height - 1) * width + columns.clamp(0, width - 1)
    return labels.flatten(1).gather(1, places.flatten(1)).view_as(labels)
