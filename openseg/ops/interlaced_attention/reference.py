# SPDX-License-Identifier: MIT
"""Reference of `interlaced_attention` in plain PyTorch: self-attention on a regrouped batch."""

from torch import Tensor

from openseg.ops._layout import in_format_of
from openseg.ops.self_attention import reference


def interlaced_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    groups: tuple[int, int],
    kind: str,
) -> Tensor:
    q, k, v = (_group(x, groups, kind) for x in (query, key, value))
    context = reference.self_attention(q, k, v, scale)
    return in_format_of(query, _ungroup(context, value.shape, groups, kind))


def _group(x: Tensor, groups: tuple[int, int], kind: str) -> Tensor:
    """[B, C, H, W] -> [B · number of groups, C, rows, columns of a group]."""
    down, across = groups
    x = x.unflatten(3, (-1, across)).unflatten(2, (-1, down))  # [B, C, H/down, down, W/across, …]
    order = (0, 3, 5, 1, 2, 4) if kind == "long" else (0, 2, 4, 1, 3, 5)
    return x.permute(order).flatten(0, 2)


def _ungroup(x: Tensor, shape: tuple[int, ...], groups: tuple[int, int], kind: str) -> Tensor:
    """The inverse of `_group` for a map of shape [B, C, H, W]."""
    down, across = groups
    rows, columns = shape[2] // down, shape[3] // across
    if kind == "long":
        x = x.unflatten(0, (shape[0], down, across)).permute(0, 3, 4, 1, 5, 2)
    else:
        x = x.unflatten(0, (shape[0], rows, columns)).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(shape)
