# SPDX-License-Identifier: MIT
"""An exact product of small integers through mma, ldmatrix and cp.async."""

import ctypes
import itertools

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels
from tests.emulator.mutants import ASAN, RACE_WRITE, VALUES, Mutant


def check(kernels: Kernels) -> None:
    random = np.random.default_rng(0)
    for dtype, valid in itertools.product(("bfloat16", "float16"), (32, 24)):
        a, b = random.integers(-8, 9, (16, valid)), random.integers(-8, 9, (32, 8))
        c = np.full((16, 8), np.nan, np.float32)
        stored = [arrays.encode(x.astype(np.float64), dtype) for x in (a, b)]
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (*stored, c)]
        kernels.call_plainly("product", *pointers, valid, dtype == "bfloat16")
        assert np.array_equal(c, a @ b[:valid])


MUTANTS = [
    Mutant(
        "copies not waited for",
        "asan",
        ASAN,
        "  wait_for_copies<1>();\n",
        "",
    ),
    Mutant(
        "copies of other lanes not waited for",
        "race",
        RACE_WRITE,
        "  wait_for_copies<1>();\n  sync_warp();",
        "  wait_for_copies<1>();",
    ),
    Mutant(
        "columns that are not there",
        "asan",
        ASAN,
        "column < product.valid",
        "true",
    ),
    Mutant(
        "matrix not transposed",
        "plain",
        VALUES,
        "load_matrices<true>",
        "load_matrices<false>",
    ),
    Mutant(
        "copies left behind",
        "plain",
        "copies under way",
        "  wait_for_copies<0>();\n",
        "",
    ),
    Mutant(
        "a lane that leaves early",
        "plain",
        "no thread can go on",
        "  commit_copies();\n  wait_for",
        "  if (lane == 31) {\n    wait_for_copies<-1>();\n    return;\n  }\n"
        "  commit_copies();\n  wait_for",
    ),
]
