# SPDX-License-Identifier: MIT
"""Cases and mutants of `self_attention`."""

from tests.emulator import attention
from tests.emulator.attention import Case, Sets
from tests.emulator.kernels import Kernels


def whole_image(height: int, width: int) -> Sets:
    fields = {
        "down": 1,
        "across": 1,
        "lines": 1,
        "columns": height * width,
        "stride_down": 0,
        "stride_across": 0,
        "stride_line": 0,
        "stride_column": 1,
    }
    return Sets((height, width), fields)


CASES = [
    Case(1, 8, 8, whole_image(1, 1)),
    Case(2, 64, 8, whole_image(3, 5), "float16", shared=True),
    Case(1, 256, 256, whole_image(1, 15), "float32"),
    Case(1, 8, 512, whole_image(5, 13), "bfloat16", channels_last=False),
    Case(1, 100, 24, whole_image(13, 5), "float16", shared=True),
    Case(1, 64, 64, whole_image(8, 8), "tf32", channels_last=False),
    Case(1, 33, 300, whole_image(3, 23), "float32", channels_last=False, shared=True),
    Case(1, 8, 8, whole_image(11, 13), "bfloat16", spread=200.0, scale=0.1),
    Case(1, 8, 8, whole_image(7, 10), "float32", spread=100.0, scale=-0.1),
    Case(0, 8, 8, whole_image(2, 2)),
]


def check(kernels: Kernels) -> None:
    attention.check(kernels, CASES)


MUTANTS = []
