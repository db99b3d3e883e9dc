# SPDX-License-Identifier: MIT
"""Exact products of small integers by four warps, through wgmma and cp.async."""

import ctypes

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels
from tests.emulator.mutants import VALUES, Mutant


def check(kernels: Kernels) -> None:
    random = np.random.default_rng(0)
    for dtype in ("bfloat16", "float16"):
        a, b = random.integers(-8, 9, (64, 64)), random.integers(-8, 9, (64, 128))
        results = [np.full(shape, np.nan, np.float32) for shape in ((64, 32), (64, 128))]
        stored = [arrays.encode(x.astype(np.float64), dtype) for x in (a, b)]
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (*stored, *results)]
        kernels.call_plainly("group_products", *pointers, dtype == "bfloat16")
        assert np.array_equal(results[0], a @ b[32:, :64].T)
        assert np.array_equal(results[1], 2 * a @ b)


MUTANTS = [
    Mutant(
        "results read too soon",
        "plain",
        "results of products that may still be under way",
        "wait_for_products<1>(by_rows)",
        "wait_for_products<2>(by_rows)",
    ),
    Mutant(
        "results that were never waited for",
        "plain",
        "returns with products under way",
        "  wait_for_products<0>(by_depth);\n",
        "",
    ),
    Mutant(
        "copies that products may not see",
        "race",
        "product of what was not shown to it",
        "  show_to_products();\n",
        "",
    ),
    Mutant(
        "copies shown after the barrier",
        "race",
        "product of what was not shown to it",
        "  show_to_products();\n  sync_block();\n",
        "  sync_block();\n  show_to_products();\n",
    ),
    Mutant(
        "registers of products not ordered",
        "plain",
        "without start_products",
        "  start_products();\n",
        "",
    ),
    Mutant(
        "blocks in the order of plain rows",
        "plain",
        VALUES,
        "&block[swizzled(row, column % block_columns)]",
        "&block[row * block_columns + column % block_columns]",
    ),
    Mutant(
        "copies not waited for",
        "plain",
        "a factor has changed|returns with",
        "  wait_for_copies<0>();\n",
        "",
    ),
    Mutant(
        "blocks that start anywhere",
        "plain",
        f"{VALUES}|a factor has changed",
        "shared.take<T>(size * size, block_bytes)",
        "shared.take<T>(size * size)",
    ),
    Mutant(
        "first sums added to what registers held",
        "plain",
        VALUES,
        "step > 0);\n  }\n  commit_products();\n#pragma",
        "true);\n  }\n  commit_products();\n#pragma",
    ),
]
