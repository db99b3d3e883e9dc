# SPDX-License-Identifier: MIT
"""Semantic segmentation with object context on kernels of its own.

Public names are loaded on first use, so that `import openseg` alone costs nothing.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME_OF = {
    "create_model": "openseg.models",
    "list_models": "openseg.models",
    "load_weights": "openseg.weights",
}
_SUBPACKAGES = (
    "backbones",
    "data",
    "engine",
    "layers",
    "losses",
    "metrics",
    "models",
    "ops",
    "weights",
)
__all__ = ["__version__", *_HOME_OF, *_SUBPACKAGES]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"openseg.{name}")
    raise AttributeError(f"module 'openseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
