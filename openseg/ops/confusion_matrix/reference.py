# SPDX-License-Identifier: MIT
"""The confusion matrix in plain torch, the oracle of every backend."""

import torch
from torch import Tensor


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Counts [K, K] int64, and int64 [number of pixels out of range, position of the first]."""
    prediction, target = prediction.reshape(-1).long(), target.reshape(-1).long()
    kept = target != ignore_index
    inside = (target >= 0) & (target < num_classes) & (prediction >= 0) & (prediction < num_classes)
    # one more cell takes what does not count; the shape of bincount's result would not be static
    cells = num_classes * num_classes
    cell = torch.where(kept & inside, target * num_classes + prediction, cells)
    counts = cell.new_zeros(cells + 1).scatter_add_(0, cell, torch.ones_like(cell))
    wrong = torch.cat(
        [cell.new_zeros(1), (kept & ~inside).long()]
    )  # argmax refuses an empty tensor
    first = (wrong.argmax() - 1).clamp(min=0)
    return counts[:cells].view(num_classes, num_classes), torch.stack([wrong.sum(), first])
