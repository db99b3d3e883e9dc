# SPDX-License-Identifier: MIT
"""How many instructions the warps of a kernel issue, counted in what nvcc makes of it.

PTX is not yet what the GPU runs. The weights stand for what ptxas makes of an instruction for
sm_90a; over whole kernels they are up to a fifth below its own number of instructions.
"""

import ctypes
import re
from collections import Counter
from collections.abc import Callable

from tests.emulator import nvcc
from tests.emulator.kernels import Kernels

# Registers are named anew, parameters are operands, and halves of 64 bits are registers already.
_FREE = re.compile(
    r"mov|cvta|ld\.param|cvt\.(u64\.u32|u32\.u64|u32\.u16|u16\.u32)|bar\.warp|not\.pred"
)
_WEIGHTS = {
    r"(mul|mad)\.lo\.[su]64": 4,
    r"(div|rem)\.[su]64": 90,
    r"(div|rem)\.[su]32": 18,
    r"(rcp|div|sqrt)\.rn": 10,
    r"(min|max)\.[su]64": 4,
    r"(add|sub|neg|shl|shr|and|or|xor|not|setp\.\w+|selp)\.[bsu]64": 2,
}


def weight(instruction: str) -> int:
    if _FREE.match(instruction):
        return 0
    return next((w for name, w in _WEIGHTS.items() if re.match(name, instruction)), 1)


def count(run: Callable[[Kernels], None]) -> Counter[tuple[str, ...]]:
    """By the line of the source, and the lines that it is inlined into, the inmost first."""
    path = str(nvcc.library(nvcc.CHOSEN, lines=True))
    report = ctypes.CDLL(path).emulator_instructions
    report.restype = ctypes.c_char_p
    report()  # what was counted before
    run(Kernels(path, architecture="9.0"))
    found: Counter[tuple[str, ...]] = Counter()
    for row in report().decode().splitlines():
        _, source, name, times = row.split("\t")
        found[tuple(source.split(","))] += weight(name) * int(times)
    return found
