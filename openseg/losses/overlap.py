# SPDX-License-Identifier: MIT
"""Losses that stand for the overlap of regions, for classes of few pixels.

Both need the probabilities of all classes at full resolution, and count a batch as one picture.
"""

import torch
from torch import Tensor, nn

from openseg.losses.full_size import one_hot, upsample


class Dice(nn.Module):
    """1 - (2 Σ p y + s) / (Σ p + Σ y + s), mean over the classes in the target.

    Milletari et al., 3DV 2016, with plain sums in the denominator. p are softmax probabilities, y
    is 1 on the pixels of the class, and the sums run over the valid pixels of the batch.

    smooth: s, above 0; it keeps classes of few pixels from the extremes.
    """

    def __init__(
        self, ignore_index: int = 255, align_corners: bool = True, smooth: float = 1.0
    ) -> None:
        super().__init__()
        if smooth <= 0:
            raise ValueError(f"smooth must be more than 0, got {smooth}")
        self.ignore_index = ignore_index
        self.align_corners = align_corners
        self.smooth = smooth

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits [B, K, h, w] and target [B, H, W] (uint8 or int64)."""
        scores = upsample(logits, target.shape[1:], self.align_corners)
        truth, counted = one_hot(target, scores, self.ignore_index)
        probability = scores.softmax(1) * counted
        hits, found, there = (x.sum((0, 2, 3)) for x in (probability * truth, probability, truth))
        loss = 1 - (2 * hits + self.smooth) / (found + there + self.smooth)
        return _mean_over_present(loss, there)


class Lovasz(nn.Module):
    """Lovász-softmax: the convex closure of 1 - IoU, mean over the classes in the target.

    Berman, Rannen Triki, Blaschko, CVPR 2018. Sorts all pixels once a class.
    """

    def __init__(self, ignore_index: int = 255, align_corners: bool = True) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.align_corners = align_corners

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits [B, K, h, w] and target [B, H, W] (uint8 or int64)."""
        scores = upsample(logits, target.shape[1:], self.align_corners)
        truth, counted = one_hot(target, scores, self.ignore_index)
        # Ignored pixels have no error; those come last in the order and add nothing.
        errors = (truth - scores.softmax(1)).abs() * counted
        losses = [
            _lovasz_hinge(errors[:, k].flatten(), truth[:, k].flatten().long())
            for k in range(scores.shape[1])
        ]
        return _mean_over_present(torch.stack(losses), truth.sum((0, 2, 3)))


def _lovasz_hinge(errors: Tensor, truth: Tensor) -> Tensor:
    """Σ error · growth of 1 - IoU as pixels become wrong, the worst first; both [N]."""
    errors, order = errors.sort(descending=True)
    truth = truth[order]
    size = truth.sum()
    # int64 sums: exact, and the same in each run on a GPU too.
    intersection = size - truth.cumsum(0)
    union = size + (1 - truth).cumsum(0)
    jaccard = 1 - intersection.to(errors.dtype) / union
    return (errors * torch.diff(jaccard, prepend=jaccard.new_zeros(1))).sum()


def _mean_over_present(loss: Tensor, pixels: Tensor) -> Tensor:
    """Mean of the losses [K] of the classes with pixels [K]; 0 without any."""
    present = (pixels > 0).to(loss.dtype)
    return (loss * present).sum() / present.sum().clamp(min=1)
