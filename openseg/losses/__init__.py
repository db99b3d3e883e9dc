# SPDX-License-Identifier: MIT
"""Training losses over the low-resolution logits of the networks.

A loss is a module: (logits [B, K, h, w], target [B, H, W]) -> scalar. Pixels with the ignore index
have neither loss nor gradient, and a batch without any other has the loss 0.
"""

from openseg.losses.cross_entropy import CLASS_WEIGHTS, CrossEntropy, Focal
from openseg.losses.edges import EdgeCrossEntropy, edges_of
from openseg.losses.overlap import Dice, Lovasz
from openseg.losses.rmi import RMI
from openseg.losses.segfix import SegFixLoss
from openseg.losses.segmentation import SegmentationLoss, WeightedSum

__all__ = [
    "CLASS_WEIGHTS",
    "RMI",
    "CrossEntropy",
    "Dice",
    "EdgeCrossEntropy",
    "Focal",
    "Lovasz",
    "SegFixLoss",
    "SegmentationLoss",
    "WeightedSum",
    "edges_of",
]
