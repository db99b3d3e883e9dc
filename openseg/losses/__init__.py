# SPDX-License-Identifier: MIT
"""Training losses over the low-resolution logits of the networks."""

from openseg.losses.segmentation import SegmentationLoss

__all__ = ["SegmentationLoss"]
