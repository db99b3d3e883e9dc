# SPDX-License-Identifier: MIT
"""Chooses the implementation that runs one call of an operator."""

from collections.abc import Mapping

_NAMES = ("auto", "reference")


def choose(operator: str, backend: str, obstacles: Mapping[str, str | None]) -> str:
    """The backend for one call; `obstacles` is ordered, fastest first."""
    if backend not in _NAMES:
        raise ValueError(f"{operator}: backend is {backend!r}, expected one of {', '.join(_NAMES)}")
    return next(name for name, obstacle in obstacles.items() if obstacle is None)
