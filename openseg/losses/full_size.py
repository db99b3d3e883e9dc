# SPDX-License-Identifier: MIT
"""What the losses share that need every class at every pixel: they store [B, K, H, W].

They are for maps that fit: 19 classes at 1024×512 are 40 MB an image and copy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def upsample(logits: Tensor, size: torch.Size, align_corners: bool) -> Tensor:
    """Logits [B, K, h, w] at `size`, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)


def one_hot(target: Tensor, like: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Target [B, H, W] as 0 and 1 for each class [B, K, H, W], and which pixels count [B, 1, H, W].

    Both have the dtype of `like` [B, K, H, W]; a pixel to ignore is 0 in all of them. Raises
    ValueError for a label that is no class (RuntimeError on a GPU, which does not wait for it).
    """
    classes = like.shape[1]
    valid = target != ignore_index
    label = torch.where(valid, target, 0).long()
    wrong = (label < 0) | (label >= classes)
    if target.device.type == "cpu":
        if wrong.any():
            raise ValueError(
                f"target has the label {int(target[wrong][0])}, expected 0..{classes - 1} or "
                f"{ignore_index} (ignored); {int(wrong.sum())} pixels are out of range"
            )
    else:
        torch._assert_async(~wrong.any(), "target has a label out of range")
    hot = torch.zeros_like(like).scatter_(1, label.unsqueeze(1), 1)
    counted = valid.unsqueeze(1).to(like.dtype)
    return hot * counted, counted
