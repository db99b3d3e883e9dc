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
    assert found.total("memory_bytes") == 2 * 32 * sectors  # read, and written
    assert all("strided_kernel" in line.kernel for line in found.lines)


def test_products_are_counted(counter: Counter) -> None:
    a, b = (arrays.encode(np.zeros(shape), "bfloat16") for shape in ((16, 32), (32, 16)))
    c = np.zeros((4, 16, 16), np.float32)
    arguments = [*(ctypes.c_void_p(x.ctypes.data) for x in (a, b, c)), 32, dtypes()["bfloat16"]]
    found = counter.count(lambda kernels: kernels.call_plainly("product", *arguments, False))
    assert found.products == 2 * 3 * 2 + 2  # steps, matrices and halves, and one of one step


# Thousands of clocks of memory, L2 and shared memory, as counted, for bfloat16 and channels_last.
COUNTED = {
    "object_attention": {
        "K = 19, forward": (46, 29, 18),
        "K = 19, backward": (85, 69, 56),
        "K = 150, forward": (51, 44, 40),
        "K = 150, backward": (214, 167, 138),
    },
    "spatial_gather": {
        "K = 19, forward": (56, 43, 16),
        "K = 19, backward": (97, 61, 39),
        "K = 150, forward": (106, 98, 40),
        "K = 150, backward": (137, 126, 99),
    },
    "self_attention": {
        "key is query, forward": (38, 83, 110),
        "key is query, backward": (408, 255, 249),
        "own key, forward": (51, 83, 110),
        "own key, backward": (160, 400, 557),
    },
    "interlaced_attention": {
        "sets of 169, forward": (120, 66, 72),
        "sets of 169, backward": (201, 130, 181),
        "sets of 64, forward": (121, 66, 33),
        "sets of 64, backward": (202, 132, 81),
    },
    "inplace_abn": {
        "leaky ReLU, forward": (110, 79, 5),
        "leaky ReLU, backward": (201, 128, 8),
    },
    "upsample_cross_entropy": {
        "forward": (37, 32, 113),
        "forward, mining": (58, 63, 119),
        "backward": (39, 53, 331),
    },
}


@pytest.mark.parametrize("operator", COUNTED)
def test_kernels_move_no_more_than_they_did(
    counter: Counter, operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tenth more would be worth a look. So would banks that conflict."""
    monkeypatch.setattr(arrays, "place", costs.aligned)
    found = {
        what.name: costs.bounds(what, counter.count(what.run))
        for what in costs.PASSES[operator]("bfloat16", True)
    }
    counted = COUNTED[operator]
    assert found.keys() == counted.keys()
    for name, (memory, l2, shared) in counted.items():
        assert found[name]["memory"] <= 1.1e3 * memory, name
        assert found[name]["L2"] <= 1.1e3 * l2, name
        assert found[name]["shared"] <= 1.1e3 * shared, name
        assert found[name]["conflicts"] <= 0.05 * found[name]["shared"], name


@pytest.mark.parametrize("operator", ["object_attention", "self_attention"])
def test_banks_do_not_conflict_in_products_of_32_bits(
    counter: Counter, operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "place", costs.aligned)
    for what in costs.PASSES[operator]("tfloat32", True):
        assert counter.count(what.run).total("conflicts") == 0, what.name
