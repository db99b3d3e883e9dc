# SPDX-License-Identifier: MIT
"""An exact product of small integers through mma, ldmatrix and cp.async."""

import ctypes
import itertools

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels, dtypes
from tests.emulator.mutants import ASAN, RACE_WRITE, VALUES, Mutant


def check(kernels: Kernels) -> None:
    random = np.random.default_rng(0)
    kinds = (("bfloat16", False), ("float16", False), ("float32", False), ("float32", True))
    for (dtype, tf32), valid in itertools.product(kinds, (32, 24)):
        a, b = random.integers(-8, 9, (16, valid)), random.integers(-8, 9, (32, 16))
        c = np.full((4, 16, 16), np.nan, np.float32)
        stored = [arrays.encode(x.astype(np.float64), dtype) for x in (a, b)]
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (*stored, c)]
        kernels.call_plainly("product", *pointers, valid, dtypes()[dtype], tf32)
        assert np.array_equal(c[0], a @ b[:valid])
        assert np.array_equal(c[1], a @ a.T)
        assert np.array_equal(c[2], b.T @ b)
        assert np.array_equal(c[3], a[:, :16] @ b[:16])
    # Neither factor is a TF32, both are floats: what is beyond TF32 counts unless it is waived.
    a, b = np.zeros((16, 32), np.float32), np.zeros((32, 16), np.float32)
    a[:, 0], b[0] = 1 + 2.0**-11, 1 + 2.0**-12
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (a, b, c)]
    exact = (1 + 2.0**-11) * (1 + 2.0**-12)
    for tf32, product, slack in ((False, exact, 2.0**-22), (True, 1 + 2.0**-10, 0)):
        kernels.call_plainly("product", *pointers, 32, dtypes()["float32"], tf32)
        assert (np.abs(c[0] - product) <= slack).all()


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
        "column < valid",
        "true",
    ),
    Mutant(
        "matrix not transposed",
        "plain",
        VALUES,
        "load_right(right, rows",
        "load_right_transposed(right, rows",
    ),
    Mutant(
        "depth of the two factors in another order",
        "plain",
        VALUES,
        "load_left(left[step], ordered +",
        "load_left(left[step], a +",
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
        "product.valid, size);",
        "product.valid, size);\n"
        "  if (lane_index() == 31) {\n    wait_for_copies<-1>();\n    return;\n  }",
    ),
]
