# SPDX-License-Identifier: MIT
"""Reference of `upsample_cross_entropy` in plain PyTorch; it computes in float32 at least."""

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    align_corners: bool,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    target = target.long()
    if weight is not None:
        weight = weight.to(dtype)
    upsampled = F.interpolate(
        logits.to(dtype), target.shape[1:], mode="bilinear", align_corners=align_corners
    )
    loss = F.cross_entropy(
        upsampled,
        target,
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    if reduction == "none":
        return loss
    valid = target != ignore_index
    if weight is None:
        total = valid.sum()
    else:
        total = torch.where(valid, weight[torch.where(valid, target, 0)], 0).sum()
    return loss.sum() / torch.where(total > 0, total, 1)
