# SPDX-License-Identifier: MIT
"""What the kernels count for in `torch.utils.flop_counter.FlopCounterMode`.

As there: products of matrices count, two operations for each multiplication with its addition;
interpolation, softmax and comparisons count nothing.
"""

from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import register_flop_formula


def register(formula: Callable[..., int], *operators: Any) -> None:
    """Give operators (None: the binary has none) their formula, a function of the shapes of their
    arguments in place of the tensors."""
    for operator in operators:
        if operator is not None:
            register_flop_formula(operator.overloadpacket)(formula)


def none(*shapes: Any, **options: Any) -> int:
    """The formula of an operator without products."""
    return 0


def attention(pairs: int, key_channels: int, value_channels: int) -> int:
    """Scores and sums for so many pairs of a query and a key.

    With N pixels an image has N · K of them in `object_attention`, N² in `self_attention`, and
    N · (pixels of a group) in `interlaced_attention`.
    """
    return 2 * pairs * (key_channels + value_channels)


def attention_backward(pairs: int, key_channels: int, value_channels: int) -> int:
    """The gradients of query, key and value, and the scores computed once more."""
    return 2 * pairs * (3 * key_channels + 2 * value_channels)
