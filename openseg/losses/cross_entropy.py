# SPDX-License-Identifier: MIT
"""Cross entropy and its relative for rare classes, straight from low-resolution logits.

Neither stores a [B, K, H, W] tensor: the operator upsamples while it sums.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openseg.ops import Ohem, upsample_cross_entropy

CLASS_WEIGHTS: dict[str, tuple[float, ...]] = {
    "cityscapes": (
        *(0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023),
        *(0.9539, 0.9843, 1.1116, 0.9037, 1.0865, 1.0955, 1.0865, 1.1529, 1.0507),
    ),
}
"""Published class weights, by the name of their data set."""


class CrossEntropy(nn.Module):
    """Softmax cross entropy at the size of the target.

    Args:
        class_weights: K factors, one a class; the mean over pixels divides by their sum.
        ignore_index: label of the pixels without loss.
        align_corners: of the upsampling of the logits.
        label_smoothing: in [0, 1].
        ohem: online hard example mining; its `min_kept` counts pixels of one call, so of one
            process and micro batch, as in the published training on several GPUs.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        ignore_index: int = 255,
        align_corners: bool = True,
        label_smoothing: float = 0.0,
        ohem: Ohem | None = None,
    ) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.align_corners = align_corners
        self.label_smoothing = label_smoothing
        self.ohem = ohem
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits [B, K, h, w] and target [B, H, W] (uint8 or int64)."""
        return upsample_cross_entropy(
            logits,
            target,
            align_corners=self.align_corners,
            weight=self.class_weights,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            ohem=self.ohem,
        )


class Focal(CrossEntropy):
    """Σ w (1 - p)^γ (-log p) / Σ w over the valid pixels (Lin et al., ICCV 2017).

    p is the probability of a pixel's own class and w the weight of that class. Differs from the
    paper in the divisor, which is that of cross entropy: γ = 0 is cross entropy.
    """

    def __init__(
        self,
        class_weights: Sequence[float] | None = None,
        ignore_index: int = 255,
        align_corners: bool = True,
        gamma: float = 2.0,
    ) -> None:
        super().__init__(class_weights, ignore_index, align_corners)
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0, got {gamma}")
        self.gamma = gamma

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits [B, K, h, w] and target [B, H, W] (uint8 or int64)."""
        entropy = upsample_cross_entropy(
            logits,
            target,
            align_corners=self.align_corners,
            ignore_index=self.ignore_index,
            reduction="none",
        )
        valid = target != self.ignore_index
        weight = valid.to(entropy.dtype)
        if self.class_weights is not None:
            weight = weight * self.class_weights.to(weight)[torch.where(valid, target, 0).long()]
        # A power of 0 has no gradient below 1, where a sure pixel lies: 1 - p is kept above it.
        doubt = -torch.expm1(-entropy)
        tiny = torch.finfo(doubt.dtype).tiny
        loss = (weight * doubt.clamp(min=tiny) ** self.gamma * entropy).sum()
        total = weight.sum()
        return loss / torch.where(total > 0, total, 1)
