# SPDX-License-Identifier: MIT
"""Reference of `object_attention` in plain PyTorch; the softmax runs in float32 at least."""

import torch
from torch import Tensor

from openseg.ops._layout import in_format_of


def object_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    scores = key @ query.flatten(2)  # [B, K, N]
    scores = scale * scores.to(torch.promote_types(scores.dtype, torch.float32))
    weights = scores.softmax(dim=1).to(value.dtype)
    context = value.transpose(1, 2) @ weights  # [B, Dv, N]
    return in_format_of(query, context.unflatten(2, query.shape[2:]))
