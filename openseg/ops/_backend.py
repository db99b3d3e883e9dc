# SPDX-License-Identifier: MIT
"""Choice of the backend of an operator."""

from collections.abc import Callable, Mapping
from typing import Any


def choose(op: str, backend: str, backends: Mapping[str, Callable[..., Any]]) -> Callable[..., Any]:
    """The named implementation, or for "auto" the reference."""
    if backend == "auto":
        return backends["reference"]
    if backend not in backends:
        raise ValueError(f"{op} has no backend {backend!r}; it has auto, {', '.join(backends)}")
    return backends[backend]
