# SPDX-License-Identifier: MIT
"""What nvcc makes of every CUDA kernel, for every architecture that is shipped: no GPU is needed.

Registers that do not suffice, and arrays that are indexed at run time, end in local memory: slow,
and said nowhere but here.
"""

import re
from pathlib import Path

import pytest

from tests.emulator import build
from tests.emulator.nvcc import ARCHITECTURES, CHOSEN, CUOBJDUMP, NVCC, PRIMITIVES, assembly

INSTRUCTIONS = (
    "HMMA.16816.F32.BF16",
    "HMMA.16816.F32 ",
    "HMMA.1688.F32.TF32",
    "LDSM.16.M88.4",
    "LDSM.16.MT88.4",
    "LDGSTS.E.BYPASS.128",
)
GROUP_INSTRUCTIONS = (
    "HGMMA.64x32x16.F32.BF16",
    "HGMMA.64x32x16.F32 ",
    "HGMMA.64x128x16.F32.BF16",
    "HGMMA.64x128x16.F32 ",
    "LDGSTS.E.BYPASS.128",
    "FENCE.VIEW.ASYNC",
)
GROUP_PRODUCTS = [
    PRIMITIVES[1],
    build.ROOT / "csrc/common/cuda/attention_backward_sm90.cu",
]
NORM = [
    build.ROOT / f"csrc/inplace_abn/cuda/{name}.cu" for name in ("inplace_abn", "whole_channels")
]
PRODUCTS = [
    build.ROOT / "csrc" / file
    for file in (
        "common/cuda/attention_backward.cu",
        "common/cuda/attention_forward.cu",
        "common/cuda/whole_sets_backward.cu",
        "common/cuda/whole_sets_forward.cu",
        "object_attention/cuda/object_attention.cu",
        "spatial_gather/cuda/spatial_gather.cu",
    )
]
SOURCES = sorted({*build.kernel_sources(), *PRIMITIVES})
COMPILATIONS = [
    (source, architecture)
    for source in SOURCES
    for architecture in ARCHITECTURES
    if architecture == CHOSEN or source not in GROUP_PRODUCTS
]


pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="nvcc is not installed"),
    pytest.mark.skipif(CUOBJDUMP is None, reason="cuobjdump is in neither CUDA nor triton here"),
]


@pytest.mark.parametrize(
    ("source", "architecture"), COMPILATIONS, ids=[f"{s.stem}-{a}" for s, a in COMPILATIONS]
)
def test_registers_suffice_and_float_sums_have_an_order(source: Path, architecture: str) -> None:
    if architecture != CHOSEN and not build.THOROUGH:
        pytest.skip(build.WHY_NOT_THOROUGH)
    text = assembly(source, architecture)
    usage = re.findall(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", text)
    assert usage
    assert {(stack, local) for _, stack, local in usage} == {("0", "0")}
    assert not re.findall(r"\b(?:LDL|STL)\b.*", text)
    assert not re.findall(r"\b(?:ATOM|ATOMG|ATOMS|RED|REDG)\.\S*F(?:16|32|64)\S*", text)


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_wrappers_become_the_instructions_meant(instruction: str) -> None:
    assert instruction in assembly(PRIMITIVES[0], "80")


@pytest.mark.parametrize("source", PRODUCTS, ids=lambda path: path.stem)
def test_products_and_copies_are_the_instructions_meant(source: Path) -> None:
    text = assembly(source, CHOSEN)
    assert [instruction for instruction in INSTRUCTIONS if instruction not in text] == []


@pytest.mark.parametrize("source", GROUP_PRODUCTS, ids=lambda path: path.stem)
def test_products_of_four_warps_run_on_together(source: Path) -> None:
    text = assembly(source, CHOSEN)
    assert [name for name in GROUP_INSTRUCTIONS if name not in text] == []
    # Where registers of products are touched while these run, the compiler waits for each of them.
    assert text.count("WARPGROUP.ARRIVE") < text.count("HGMMA") / 4


@pytest.mark.parametrize("source", NORM, ids=lambda path: path.stem)
def test_what_is_read_by_16_bytes_is_written_so(source: Path) -> None:
    """The compiler takes an assignment of 16 bytes apart, into one of 2 bytes for each value."""
    kernels = re.split(r"Function : ", assembly(source, CHOSEN))[1:]
    wide = [kernel for kernel in kernels if re.search(r"\bLDG\S*\.128\b", kernel)]
    assert wide
    assert [kernel for kernel in wide if "STG.E.128" not in kernel] == []
