# SPDX-License-Identifier: MIT
"""Cases and mutants of `interlaced_attention`."""

import numpy as np

from tests.emulator import attention
from tests.emulator.attention import Case, Sets
from tests.emulator.kernels import Kernels


def long_sets(height: int, width: int, down: int, across: int) -> Sets:
    fields = {
        "down": down,
        "across": across,
        "lines": height // down,
        "columns": width // across,
        "stride_down": width,
        "stride_across": 1,
        "stride_line": down * width,
        "stride_column": across,
    }
    rows, columns = np.divmod(np.arange(height * width), width)
    return Sets((height, width), fields, sorted_by(rows % down * across + columns % across))


def short_sets(height: int, width: int, down: int, across: int) -> Sets:
    fields = {
        "down": height // down,
        "across": width // across,
        "lines": down,
        "columns": across,
        "stride_down": down * width,
        "stride_across": across,
        "stride_line": width,
        "stride_column": 1,
    }
    rows, columns = np.divmod(np.arange(height * width), width)
    return Sets(
        (height, width), fields, sorted_by(rows // down * (width // across) + columns // across)
    )


def sorted_by(sets: np.ndarray) -> np.ndarray:
    """[sets, pixels of a set], in the order of the map."""
    return np.argsort(sets, kind="stable").reshape(sets.max() + 1, -1)


CASES = [
    Case(2, 8, 16, long_sets(4, 9, 2, 3), "float16"),
    Case(1, 64, 512, short_sets(4, 6, 2, 3), "bfloat16"),
    Case(1, 8, 8, short_sets(16, 8, 8, 8), "float32", channels_last=False),
    Case(1, 24, 8, long_sets(26, 15, 2, 3), "bfloat16", channels_last=False, shared=True),
    Case(1, 100, 8, long_sets(2, 3, 2, 3), "tf32", shared=True),
    Case(0, 8, 8, long_sets(2, 3, 2, 3)),
]


def check(kernels: Kernels) -> None:
    attention.check(kernels, CASES)


MUTANTS = []
