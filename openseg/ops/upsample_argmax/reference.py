# SPDX-License-Identifier: MIT
"""Bilinear upsampling and argmax in plain torch, the oracle of every backend.

Half-precision logits are interpolated in float32: rounded to half, classes would tie.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_UINT8_CLASSES = 256


def upsample_argmax(
    logits: Tensor, size: tuple[int, int], align_corners: bool, confidence: bool
) -> tuple[Tensor, Tensor]:
    """Labels [B, H, W] and softmax probability [B, H, W] float32, or [0] where not asked for."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    if wide.shape[0] == 0:  # F.interpolate refuses an empty batch
        values = wide.new_empty((*wide.shape[:2], *size))
    else:
        values = F.interpolate(wide, size, mode="bilinear", align_corners=align_corners)
    labels = values.argmax(1)
    if logits.shape[1] <= MOST_UINT8_CLASSES:
        labels = labels.to(torch.uint8)
    if not confidence:
        return labels, wide.new_empty(0, dtype=torch.float32)
    return labels, values.softmax(1).amax(1).float()
