# SPDX-License-Identifier: MIT
"""Exact products of small integers: which instruction is wrong, where values above are.

nvcc compiles what the emulator runs in tests/emulator/operators/primitives*.py.
"""

import ctypes
import functools
import os
import shutil
import tempfile

import pytest
import torch

from tests.emulator import build
from tests.emulator.kernels import dtypes

HOME = os.environ.get("CUDA_HOME", "/usr/local/cuda")
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path=f"{HOME}/bin")

pytestmark = pytest.mark.skipif(NVCC is None, reason=f"nvcc is neither on PATH nor in {HOME}")


@functools.cache
def library(source: str) -> ctypes.CDLL:
    """Of the kernels of this file, for the present GPU."""
    major, minor = torch.cuda.get_device_capability()
    arch = f"{major}{minor}" + ("a" if source.endswith("_sm90.cu") else "")
    includes = [f"-I{build.ROOT / 'csrc'}", f"-I{build.HERE}"]
    flags = ["-std=c++20", "-O3", *includes, "-shared", "-Xcompiler", "-fPIC"]
    flags.append(f"-gencode=arch=compute_{arch},code=sm_{arch}")
    with tempfile.TemporaryDirectory() as folder:
        result = f"{folder}/library.so"
        build.run([NVCC, *flags, "-o", result, str(build.HERE / source)])
        return ctypes.CDLL(result)


def call(function, *arguments):
    function.restype = ctypes.c_char_p
    passed = [ctypes.c_void_p(x.data_ptr()) if torch.is_tensor(x) else x for x in arguments]
    assert function(*passed) is None
    torch.cuda.synchronize()


def integers(*shape):
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("dtype", "tf32"),
    [
        (torch.bfloat16, False),
        (torch.float16, False),
        (torch.float32, False),
        (torch.float32, True),
    ],
)
@pytest.mark.parametrize("valid", [32, 24])
def test_products_of_a_warp(dtype, tf32, valid):
    a, b = integers(16, valid), integers(32, 16)
    c = torch.full((4, 16, 16), torch.nan, device="cuda")
    product = library("primitives.cu").product
    number = dtypes()[str(dtype).removeprefix("torch.")]
    call(product, a.to("cuda", dtype), b.to("cuda", dtype), c, valid, number, tf32)
    known = [a @ b[:valid], a @ a.T, b.T @ b, a[:, :16] @ b[:16]]
    for found, expected in zip(c.cpu(), known, strict=True):
        assert torch.equal(found, expected.float())


def float_products(a, b, tf32):
    """The first of `products`, of floats in the first row of depth and zeros."""
    factors = torch.zeros(16, 32), torch.zeros(32, 16)
    factors[0][:, 0], factors[1][0] = a, b
    c = torch.full((4, 16, 16), torch.nan, device="cuda")
    on_gpu = [x.cuda() for x in factors]
    call(library("primitives.cu").product, *on_gpu, c, 32, dtypes()["float32"], tf32)
    return c[0].cpu().double()


def test_tensor_cores_cut_off_what_is_beyond_tf32():
    """Where it is waived; else it counts."""
    a, b = 1 + 2.0**-11, 1 + 2.0**-12
    assert (float_products(a, b, tf32=True) == 1 + 2.0**-10).all()
    assert ((float_products(a, b, tf32=False) - a * b).abs() <= 2.0**-22).all()


@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("bits", [0x7FFFFFFF, -1, 0x7FC00000])  # as GPUs make it, its negative
def test_nan_stays_nan(bits, tf32):
    nan = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    assert float_products(nan, 1.0, tf32).isnan().all()
    assert float_products(1.0, nan, tf32).isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_four_warps(dtype):
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("made of instructions that only sm_90a has")
    a, b = integers(64, 64), integers(64, 128)
    by_rows, by_depth = (torch.full((64, n), torch.nan, device="cuda") for n in (32, 128))
    products = library("primitives_sm90.cu").group_products
    factors = [x.to("cuda", dtype) for x in (a, b)]
    call(products, *factors, by_rows, by_depth, dtype == torch.bfloat16)
    assert torch.equal(by_rows.cpu(), (a @ b[32:, :64].T).float())
    assert torch.equal(by_depth.cpu(), (2 * a @ b).float())
