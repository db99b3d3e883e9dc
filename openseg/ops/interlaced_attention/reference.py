# SPDX-License-Identifier: MIT
"""Reference of `interlaced_attention` in plain PyTorch: self-attention on a regrouped batch."""

import torch
import torch.nn.functional as F
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
    mask_pad: bool = False,
) -> Tensor:
    height, width = value.shape[2:]
    maps, absent, top, left = [query, key, value], None, 0, 0
    if mask_pad:
        down, across = -height % groups[0], -width % groups[1]
        top, left = down // 2, across // 2
        sides = (left, across - left, top, down - top)
        maps = [F.pad(x, sides) for x in maps]
        inside = value.new_ones(value.shape[0], 1, height, width, dtype=torch.bool)
        absent = _group(~F.pad(inside, sides), groups, kind)
    q, k, v = (_group(x, groups, kind) for x in maps)
    context = reference.self_attention(q, k, v, scale, absent)
    whole = _ungroup(context, maps[2].shape, groups, kind)
    return in_format_of(query, whole[:, :, top : top + height, left : left + width])


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
