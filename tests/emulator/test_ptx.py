# SPDX-License-Identifier: MIT
"""Every CUDA kernel as nvcc compiles it, run on the CPU: what the emulator's own primitives hide.

The emulator of sources has C++ in place of the instructions that csrc/common/*_cuda.cuh name, and
another compiler; here both are the GPU's.
"""

import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest

from tests.emulator import build, nvcc, operators
from tests.emulator.kernels import SHARED_LIMITS, Kernels
from tests.emulator.mutants import VALUES

pytestmark = [
    pytest.mark.skipif(nvcc.NVCC is None, reason="nvcc is not installed"),
    pytest.mark.skipif(shutil.which(build.COMPILER[0]) is None, reason="the machine needs g++"),
]


@pytest.mark.parametrize("operator", operators.names())
@pytest.mark.parametrize(("seed", "architecture"), list(enumerate(SHARED_LIMITS)))
def test_values_in_any_order_of_warps(operator: str, seed: int, architecture: str) -> None:
    if architecture != "9.0" and not build.THOROUGH:
        pytest.skip(build.WHY_NOT_THOROUGH)
    library = nvcc.library(nvcc.CHOSEN)
    operators.module(operator).check(Kernels(str(library), seed, architecture))


@pytest.mark.parametrize("operator", operators.names())
def test_values_of_the_oldest_gpu(operator: str) -> None:
    if not build.THOROUGH:
        pytest.skip(build.WHY_NOT_THOROUGH)
    operators.module(operator).check(Kernels(str(nvcc.library("80")), 3, "8.0"))


class Mutant(NamedTuple):
    """A mistake in a header of CUDA, which no other compiler sees; `operator`'s cases tell."""

    mistake: str
    operator: str
    source: str  # compiled with it
    report: str
    old: str  # occurs once in the header
    new: str
    header: str = "device"


PRODUCTS = ("primitives", "tests/emulator/primitives.cu")
GROUPS = ("primitives_sm90", "tests/emulator/primitives_sm90.cu")
NORM = ("inplace_abn", "csrc/inplace_abn/cuda/inplace_abn.cu")
WHOLE_CHANNELS = ("inplace_abn", "csrc/inplace_abn/cuda/whole_channels.cu")
OUTSIDE = "bytes of shared memory"
MUTANTS = [
    Mutant(
        "registers of a factor by its rows",
        *PRODUCTS,
        VALUES,
        'f32.bf16.bf16.f32 "\n      "{%0, %1, %2, %3}, {%4, %5, %6, %7}',
        'f32.bf16.bf16.f32 "\n      "{%0, %1, %2, %3}, {%4, %6, %5, %7}',
    ),
    Mutant(
        "registers of results in another order",
        *PRODUCTS,
        VALUES,
        'f32.f16.f16.f32 "\n      "{%0, %1, %2, %3}',
        'f32.f16.f16.f32 "\n      "{%1, %0, %2, %3}',
    ),
    Mutant("no transposition", *PRODUCTS, VALUES, ".x4.trans", ".x4"),
    Mutant("upper half first", *PRODUCTS, VALUES, "bf16x2.f32 %0, %2, %1", "bf16x2.f32 %0, %1, %2"),
    Mutant("unseen bits", *PRODUCTS, VALUES, "and.b32 %0, sum, 0xffffe000", "mov.b32 %0, sum"),
    Mutant("copies of what is not there", *PRODUCTS, VALUES, "valid ? 16 : 0", "16"),
    Mutant("copies from anywhere", *PRODUCTS, "not aligned", '"l"(from)', '"l"((char*)from + 8)'),
    Mutant("a group too few", *PRODUCTS, "under way", '::"n"(groups)', '::"n"(groups + 1)'),
    Mutant("groups without an end", *PRODUCTS, "under way", "cp.async.commit_group;", ""),
    Mutant("another swizzle", *GROUPS, "another layout", "1u << 30", "2u << 30", "warpgroup"),
    Mutant("another lead", *GROUPS, OUTSIDE, "lead / unit << 16", "lead / unit << 17", "warpgroup"),
    Mutant(
        "another stride", *GROUPS, OUTSIDE, "| block_bytes / unit", "| block_bytes", "warpgroup"
    ),
    Mutant(
        "no start", *GROUPS, "without a wgmma.fence", "wgmma.fence.sync.aligned;", "", "warpgroup"
    ),
    Mutant(
        "neighbours exchanged",
        *GROUPS,
        VALUES,
        '"+f"(d[i][0]), "+f"(d[i][1])',
        '"+f"(d[i][1]), "+f"(d[i][0])',
        "warpgroup",
    ),
    Mutant("halves of a warp", *WHOLE_CHANNELS, VALUES, "lane_mask);", "lane_mask, 16);"),
    Mutant(
        "a lane that goes its own way",
        *WHOLE_CHANNELS,
        "not all lanes",
        "return __shfl_xor_sync(0xffffffffu, value, lane_mask)",
        "return threadIdx.x % 32 == 5 ? value : __shfl_xor_sync(0xffffffffu, value, lane_mask)",
    ),
    Mutant("words exchanged", *NORM, VALUES, "{%1, %2, %3, %4};", "{%1, %3, %2, %4};"),
    Mutant(
        "a warp that passes a barrier",
        *NORM,
        "wait",
        "__syncthreads();",
        "if (threadIdx.x >= 32) {\n    __syncthreads();\n  }",
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.mistake)
def test_mutant_is_caught(mutant: Mutant) -> None:
    if mutant.operator != PRODUCTS[0] and not build.THOROUGH:
        pytest.skip(build.WHY_NOT_THOROUGH)
    header = build.ROOT / f"csrc/common/{mutant.header}_cuda.cuh"
    text = header.read_text()
    assert text.count(mutant.old) == 1
    headers = {header: text.replace(mutant.old, mutant.new)}
    library = nvcc.library(nvcc.CHOSEN, (build.ROOT / mutant.source, headers))
    command = [sys.executable, "-m", "tests.emulator.run", str(library), mutant.operator, "0", "3"]
    done = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert re.search(mutant.report, done.stderr), done.stderr
