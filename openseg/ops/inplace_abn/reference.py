# SPDX-License-Identifier: MIT
"""Reference of `inplace_abn` in plain PyTorch: float32 at least, and every intermediate is kept."""

import torch
import torch.nn.functional as F
from torch import Tensor

from openseg.ops.inplace_abn import synchronise


def inplace_abn(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    known: Tensor | None,
    shift: Tensor | None,
    eps: float,
    activation: str,
    activation_param: float,
    group: synchronise.Group,
) -> tuple[Tensor, Tensor]:
    """The activated map, and the statistics [3, C] that it was normalised with.

    They are mean, biased variance and number of values: `known`, or those of the batch, over the
    processes of `group`.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if known is None:
        known = synchronise.merged(_statistics(wide), shift, group)
    mean, variance, _ = known.to(wide.dtype)[..., None, None]
    y = (wide - mean) * (variance + eps).rsqrt()
    if weight is not None:
        y = y * (torch.where(weight < 0, -weight, weight) + eps)[:, None, None]
    if bias is not None:
        y = y + bias[:, None, None]
    return _activate(y, activation, activation_param).to(x.dtype), known


def _statistics(x: Tensor) -> Tensor:
    count = x.numel() // x.shape[1]
    if count == 0:
        mean = variance = x.sum((0, 2, 3))  # zeros that depend on x: every process has a gradient
    else:
        variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return torch.stack([mean, variance, torch.full_like(mean, count)])


def _activate(y: Tensor, activation: str, parameter: float) -> Tensor:
    if activation == "leaky_relu":
        return F.leaky_relu(y, parameter)
    if activation == "elu":
        return F.elu(y, parameter)
    return y.relu() if activation == "relu" else y
