# SPDX-License-Identifier: MIT
"""What a segmentation is judged by: everything follows from one exact confusion matrix."""

from openseg.metrics.confusion import ConfusionMatrix, SegmentationMetrics

__all__ = ["ConfusionMatrix", "SegmentationMetrics"]
