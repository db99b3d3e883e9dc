# SPDX-License-Identifier: MIT
"""Batch statistics of several processes as one: sums about a shift that all of them know.

One `all_reduce` a pass, of 2C + 1 numbers forward and 2C backward, for any number of processes; one
without values adds zeros.
"""

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

Group = Any
"""A `torch.distributed.ProcessGroup`, or None: this process alone."""


def group_of(group: Group | Literal["world"]) -> Group:
    """None where there are no other processes to wait for."""
    if group is None or not dist.is_available() or not dist.is_initialized():
        return None
    if group == "world":
        group = dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def merged(local: Tensor, shift: Tensor | None, group: Group) -> Tensor:
    """Statistics over all processes from those of each: [3, C], mean, biased variance, number.

    `shift` [C], equal in all processes, should be near the mean, as a running mean is. In float64
    the variance loses (mean - shift)² / variance of 2⁵³ to cancellation.
    """
    if group is None:
        return local
    mean, variance, count = local.double()
    shift = torch.zeros_like(mean) if shift is None else shift.double()
    offset = mean - shift
    sums = torch.cat([count * offset, count * (variance + offset.square()), count[:1]])
    *sums, count = sum_over(sums, group).split([len(mean), len(mean), 1])
    offset, square = (each / count for each in sums)
    variance = (square - offset.square()).clamp(min=0)
    return torch.stack([shift + offset, variance, count.expand_as(mean)])


def sum_over(values: Tensor, group: Group) -> Tensor:
    """The sum of a tensor over processes; its gradient is the sum of their gradients."""
    return _Sum.apply(values, group)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, group: Group) -> Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, grad):
        return sum_over(grad.contiguous(), ctx.group), None
