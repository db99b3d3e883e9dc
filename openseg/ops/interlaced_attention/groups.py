# SPDX-License-Identifier: MIT
"""How groups of pixels lie along a side of a map; csrc/interlaced_attention has the same."""

from typing import NamedTuple


class Span(NamedTuple):
    """`sets` groups of `members` pixels, from pixel `first` on."""

    first: int
    sets: int
    members: int
    set_step: int
    step: int


def spans(size: int, group: int, kind: str) -> list[Span]:
    """The groups of a side of `size` pixels, equally long ones together.

    A "long" group is the pixels of equal place modulo `group`, a "short" one `group` neighbours.
    Where they do not divide the side, it lies centred in a multiple, and groups end at its ends.
    """
    if kind == "long":
        whole, rest = divmod(size, group)
        found = [Span(0, rest, whole + 1, 1, group), Span(rest, group - rest, whole, 1, group)]
    else:
        missing = -size % group // 2  # of the first group
        first = min(group - missing, size) if missing else 0
        inner, last = divmod(size - first, group)
        found = [
            Span(0, 1, first, group, 1),
            Span(first, inner, group, group, 1),
            Span(size - last, 1, last, group, 1),
        ]
    return [span for span in found if span.sets > 0 and span.members > 0]
