# SPDX-License-Identifier: MIT
"""The two losses of SegFix (Yuan et al., ECCV 2020): where borders are, and which way is inwards.

The direction counts where the network *finds* a border, not where there is one.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openseg.losses.edges import shares_of_others
from openseg.losses.segmentation import Logits
from openseg.ops import upsample_cross_entropy

DIRECTIONS = 8


class SegFixLoss(nn.Module):
    """Cross entropy of the boundary mask + cross entropy of the direction.

    Both have the weight 1 - (share of the class in the batch) for each class.

    Args:
        ignore_index: label of the pixels without loss.
        align_corners: of the upsampling of the logits.
        width: pixels up to this far from a border of their region are boundary.
        threshold: the probability of boundary above which the direction counts, in (0, 1).
    """

    def __init__(
        self,
        ignore_index: int = 255,
        align_corners: bool = True,
        width: float = 5.0,
        threshold: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise ValueError(f"threshold must be above 0 and below 1, got {threshold}")
        self.ignore_index = ignore_index
        self.align_corners = align_corners
        self.width = width
        self.threshold = threshold

    def forward(self, output: Logits, target: Tensor) -> dict[str, Tensor]:
        """Losses by name: "loss" is the sum of "mask" and "direction".

        output: `main` has the logits of the mask [B, 2, h, w], interior and boundary; `aux` has
            those of the "direction" [B, 8, h, w], at angles of -180°, -135°, …, 135°.
        target: [B, 3, H, W]: label; distance to the border of its region, in pixels; and half of
            180° + the angle of the direction, as the published offset files have it.
        """
        label, distance, half_angle = target.unbind(1)
        ignored = label == self.ignore_index
        boundary = ((distance >= 0) & (distance <= self.width)).long()
        losses = {
            "mask": self._cross_entropy(output.main, boundary.masked_fill(ignored, -1)),
            "direction": self._cross_entropy(
                output.aux["direction"],
                directions_of(half_angle).masked_fill(ignored | ~self._found(output, label), -1),
            ),
        }
        return {"loss": losses["mask"] + losses["direction"], **losses}

    def _found(self, output: Logits, label: Tensor) -> Tensor:
        """Where the network sees a boundary, bool [B, H, W]; upsampling is linear in the logits."""
        mask = output.main.detach()
        lead = (mask[:, 1:] - mask[:, :1]).to(torch.promote_types(mask.dtype, torch.float32))
        lead = F.interpolate(
            lead, label.shape[1:], mode="bilinear", align_corners=self.align_corners
        )
        return lead.squeeze(1) > math.log(self.threshold / (1 - self.threshold))

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return upsample_cross_entropy(
            logits,
            target,
            align_corners=self.align_corners,
            weight=shares_of_others(target, logits.shape[1]),
            ignore_index=-1,
        )


def directions_of(half_angle: Tensor) -> Tensor:
    """Class 0..7 of the direction nearest to an angle, int64, from half of 180° + the angle."""
    steps = 2 * half_angle.to(torch.float32) / (360 / DIRECTIONS)
    return torch.ceil(steps - 0.5).long() % DIRECTIONS
