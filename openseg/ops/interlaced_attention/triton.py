# SPDX-License-Identifier: MIT
"""`interlaced_attention` by the kernels of `self_attention`, which find the pixels of a group."""

from torch import Tensor

from openseg.ops.self_attention.triton import Groups, attention, attention_backward


def _groups(query: Tensor, groups: list[int], kind: str) -> Groups:
    (height, width), (down, across) = query.shape[2:], groups
    if kind == "long":
        tokens, columns = height // down * (width // across), width // across
        return Groups(tokens, columns, down * width, across, across, width, 1)
    return Groups(down * across, across, width, 1, width // across, down * width, across)


def interlaced_attention(
    query: Tensor, key: Tensor | None, value: Tensor, scale: float, groups: list[int], kind: str
) -> tuple[Tensor, Tensor]:
    return attention(query, key, value, scale, _groups(query, groups, kind))


def interlaced_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor | None, value: Tensor, out: Tensor, statistics: Tensor,
    scale: float, groups: list[int], kind: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    where = _groups(query, groups, kind)
    return attention_backward(grad, query, key, value, out, statistics, scale, where)
