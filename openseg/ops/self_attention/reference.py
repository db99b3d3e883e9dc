# SPDX-License-Identifier: MIT
"""Reference of `self_attention` in plain PyTorch; the softmax runs in float32 at least."""

import torch
from torch import Tensor

from openseg.ops._layout import in_format_of


def self_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, absent: Tensor | None = None
) -> Tensor:
    """`absent`: bool [B, 1, H, W], the pixels that no pixel attends to."""
    scores = query.flatten(2).transpose(1, 2) @ key.flatten(2)  # [B, N, N], rows are queries
    scores = scale * scores.to(torch.promote_types(scores.dtype, torch.float32))
    if absent is not None:
        scores = scores.masked_fill(absent.flatten(2), torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=2).to(value.dtype)
    context = value.flatten(2) @ weights.transpose(1, 2)  # [B, Dv, N]
    return in_format_of(query, context.unflatten(2, query.shape[2:]))
