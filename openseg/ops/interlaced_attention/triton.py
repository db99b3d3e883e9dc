# SPDX-License-Identifier: MIT
"""`interlaced_attention` by the kernels of `self_attention`, which find the pixels of a group."""

import itertools

from torch import Tensor

from openseg.ops.interlaced_attention.groups import spans
from openseg.ops.self_attention.triton import Groups, attention, attention_backward


def _groups(query: Tensor, groups: list[int], kind: str) -> list[Groups]:
    width = query.shape[3]
    sides = [spans(size, group, kind) for size, group in zip(query.shape[2:], groups, strict=True)]
    return [
        Groups(
            rows.sets * columns.sets,
            rows.first * width + columns.first,
            rows.members * columns.members,
            columns.members,
            rows.step * width,
            columns.step,
            columns.sets,
            rows.set_step * width,
            columns.set_step,
        )
        for rows, columns in itertools.product(*sides)
    ]


def interlaced_attention(
    query: Tensor, key: Tensor | None, value: Tensor, scale: float, groups: list[int], kind: str,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return attention(query, key, value, scale, allow_tf32, _groups(query, groups, kind))


def interlaced_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor | None, value: Tensor, out: Tensor, statistics: Tensor,
    scale: float, groups: list[int], kind: str, allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    where = _groups(query, groups, kind)
    return attention_backward(grad, query, key, value, out, statistics, scale, allow_tf32, where)
