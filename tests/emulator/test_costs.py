# SPDX-License-Identifier: MIT
"""The counter of costs, on accesses whose costs are known."""

import ctypes

import numpy as np
import pytest

from tests.emulator import arrays, costs
from tests.emulator.costs import Counter
from tests.emulator.kernels import dtypes
from tests.emulator.test_emulated_kernels import pytestmark as pytestmark


@pytest.fixture(scope="module")
def counter() -> Counter:
    return Counter()


@pytest.mark.parametrize(
    ("stride", "wavefronts", "sectors"),
    [(1, 1, 4), (2, 2, 8), (8, 8, 32), (32, 32, 32), (33, 1, 32)],
)
def test_strided_accesses(counter: Counter, stride: int, wavefronts: int, sectors: int) -> None:
    numbers = costs.aligned(np.zeros(32 * stride, np.float32))
    pointer = ctypes.c_void_p(numbers.ctypes.data)
    found = counter.count(lambda kernels: kernels.call_plainly("strided", pointer, stride))
    assert numbers.sum() == 32
    assert found.total("wavefronts") == 2 * wavefronts
    assert found.total("least_wavefronts") == 2
    assert found.total("l2_bytes") == 2 * 32 * sectors
    assert all("strided_kernel" in line.kernel for line in found.lines)


def test_products_are_counted(counter: Counter) -> None:
    a, b = (arrays.encode(np.zeros(shape), "bfloat16") for shape in ((16, 32), (32, 16)))
    c = np.zeros((4, 16, 16), np.float32)
    arguments = [*(ctypes.c_void_p(x.ctypes.data) for x in (a, b, c)), 32, dtypes()["bfloat16"]]
    found = counter.count(lambda kernels: kernels.call_plainly("product", *arguments, False))
    assert found.products == 2 * 3 * 2 + 2  # steps, matrices and halves, and one of one step
