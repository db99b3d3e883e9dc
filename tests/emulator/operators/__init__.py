# SPDX-License-Identifier: MIT
"""A module an operator: small cases of its kernels, and mistakes that have to be found in them.

`check(kernels)` compares with float64 and raises when they differ; `MUTANTS` lists the mistakes.
Modules need NumPy alone, so that a sanitizer's process starts in no time.
"""

import importlib
import pkgutil
from types import ModuleType


def module(operator: str) -> ModuleType:
    return importlib.import_module(f"tests.emulator.operators.{operator}")


def names() -> list[str]:
    return sorted(found.name for found in pkgutil.iter_modules(__path__))
