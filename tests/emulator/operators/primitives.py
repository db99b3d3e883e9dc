# SPDX-License-Identifier: MIT
"""An exact product of small integers through mma, ldmatrix and cp.async."""

import ctypes
import itertools

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels, dtypes
from tests.emulator.mutants import ASAN, RACE_WRITE, VALUES, Mutant


def check(kernels: Kernels) -> None:
    check_products(kernels)
    check_floats(kernels)
    check_nan(kernels)
    check_long_sums(kernels)


def check_products(kernels: Kernels) -> None:
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


def floats() -> tuple[np.ndarray, ...]:
    """Factors a and b that are zeros, and a place for the products."""
    return tuple(np.zeros(shape, np.float32) for shape in ((16, 32), (32, 16), (4, 16, 16)))


def check_floats(kernels: Kernels) -> None:
    """Neither factor is a TF32, both are floats: what is beyond TF32 counts unless it is waived."""
    a, b, c = floats()
    a[:, 0], b[0] = 1 + 2.0**-11, 1 + 2.0**-12
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (a, b, c)]
    exact = (1 + 2.0**-11) * (1 + 2.0**-12)
    for tf32, product, slack in ((False, exact, 2.0**-22), (True, 1 + 2.0**-10, 0)):
        kernels.call_plainly("product", *pointers, 32, dtypes()["float32"], tf32)
        assert (np.abs(c[0] - product) <= slack).all()


def check_nan(kernels: Kernels) -> None:
    """The NaN that GPUs make, whose bits overflow where they are rounded like those of a number."""
    for bits, tf32 in itertools.product((0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000), (False, True)):
        a, b, c = floats()
        a.view(np.uint32)[3, 5] = b.view(np.uint32)[2, 7] = bits
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (a, b, c)]
        kernels.call_plainly("product", *pointers, 32, dtypes()["float32"], tf32)
        of_a, of_b = np.arange(16)[:, None] == 3, np.arange(16) == 7
        assert np.array_equal(np.isnan(c[0]), of_a | of_b)
        assert np.array_equal(np.isnan(c[1]), of_a | of_a.T)
        assert np.array_equal(np.isnan(c[2]), of_b[:, None] | of_b)
        assert np.array_equal(np.isnan(c[3]), of_a | of_b)


def check_long_sums(kernels: Kernels) -> None:
    """As good as sums of float32 that are rounded to the nearest: 2^-14 where tensor cores add."""
    random = np.random.default_rng(0)
    a, b = (random.uniform(0.5, 1.5, shape).astype(np.float32) for shape in ((16, 8192), (8192, 8)))
    c = np.full((16, 8), np.nan, np.float32)
    pointers = [ctypes.c_void_p(x.ctypes.data) for x in (a, b, c)]
    kernels.call_plainly("long_product", *pointers, 8192)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    assert np.abs(c / exact - 1).max() < 2.0**-19


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
