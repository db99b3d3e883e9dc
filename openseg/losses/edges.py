# SPDX-License-Identifier: MIT
"""Edges between labels, and the loss of a head that finds them (CE2P, Ruan et al., AAAI 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openseg.ops import upsample_cross_entropy


def edges_of(target: Tensor, ignore_index: int = 255) -> Tensor:
    """1 at the borders between labels, 0 elsewhere, `ignore_index` where the label is it.

    target: [B, H, W], uint8 or int64; the result has its shape and dtype. Of two neighbours with
    different labels, neither ignored, one is marked, as in the published code: the left one, the
    lower one, and on both diagonals the upper one. The marks then grow by a pixel on all sides.
    """
    marks = torch.zeros_like(target, dtype=torch.bool)
    everything, fore, aft = slice(None), slice(None, -1), slice(1, None)
    pairs = (  # rows and columns of the marked pixel, and of its neighbour
        ((everything, fore), (everything, aft)),
        ((aft, everything), (fore, everything)),
        ((fore, fore), (aft, aft)),
        ((fore, aft), (aft, fore)),
    )
    for (rows, columns), (other_rows, other_columns) in pairs:
        one, other = target[:, rows, columns], target[:, other_rows, other_columns]
        differ = (one != other) & (one != ignore_index) & (other != ignore_index)
        marks[:, rows, columns] |= differ
    grown = F.max_pool2d(marks.float().unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
    return torch.where(target == ignore_index, ignore_index, grown.to(target.dtype))


class EdgeCrossEntropy(nn.Module):
    """Cross entropy of two classes, no edge and edge, each weighted by the share of the other.

    The shares are those of the call, so of a process, as published. Pixels without a label have no
    loss, though the published code takes what was padded for pixels without an edge.
    """

    def __init__(self, ignore_index: int = 255, align_corners: bool = True) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.align_corners = align_corners

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits [B, 2, h, w] and the labels of classes [B, H, W]."""
        edges = edges_of(target, self.ignore_index)
        weight = shares_of_others(edges, 2)
        return upsample_cross_entropy(
            logits,
            edges,
            align_corners=self.align_corners,
            weight=weight,
            ignore_index=self.ignore_index,
        )


def shares_of_others(target: Tensor, num_classes: int) -> Tensor:
    """float32 [num_classes]: 1 - (share of the class among all pixels that have a class)."""
    counts = torch.stack([(target == k).sum() for k in range(num_classes)])
    return 1 - counts / counts.sum().clamp(min=1)
