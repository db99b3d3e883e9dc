# SPDX-License-Identifier: MIT
"""Reference of `spatial_gather` in plain PyTorch; the softmax runs in float32 at least."""

import torch
from torch import Tensor


def spatial_gather(features: Tensor, logits: Tensor, scale: float) -> Tensor:
    scores = logits.flatten(2)  # [B, K, N]
    scores = scale * scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = scores.softmax(dim=2).to(features.dtype)
    return weights @ features.flatten(2).transpose(1, 2)
