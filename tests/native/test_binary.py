# SPDX-License-Identifier: MIT
"""The built binary: what it needs from outside, and that no SIMD variant leaks into another."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = ROOT / "openseg" / "_C.abi3.so"
OBJECTS = ROOT / "build" / "ninja" / "csrc"

pytestmark = pytest.mark.skipif(not BINARY.exists(), reason="the kernels are not built")
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")


def symbols(path, *options):
    """(type, demangled name) of each symbol; names without versions."""
    listing = subprocess.run(
        ["nm", "-C", *options, str(path)], capture_output=True, text=True, check=True
    ).stdout
    fields = (line.split(maxsplit=2 if line[0] != " " else 1) for line in listing.splitlines())
    return [(entry[-2], entry[-1].split("@")[0]) for entry in fields]


@needs_nm
def test_needs_only_the_stable_abi_and_the_c_and_cxx_libraries():
    """libstdc++ and libc are versioned (name@GLIBCXX_3.4); the rest must be torch's C functions."""
    listing = subprocess.run(
        ["nm", "-D", "--undefined-only", str(BINARY)], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[-1] for line in listing.splitlines()]
    versions = ("@GLIBC", "@GLIBCXX", "@CXXABI", "@GCC")
    torch = ("aoti_torch_", "torch_")
    start_up = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
    strange = [
        name
        for name in names
        if not any(version in name for version in versions)
        and not name.startswith(torch)
        and name not in start_up
    ]
    assert any(name.startswith("aoti_torch_") for name in names)
    assert strange == []
    assert not any("Py" in name for name in names)


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_needs_these_libraries():
    listing = subprocess.run(
        ["readelf", "-d", str(BINARY)], capture_output=True, text=True, check=True
    ).stdout
    needed = {line.split("[")[1].rstrip("]") for line in listing.splitlines() if "(NEEDED)" in line}
    assert "libtorch_cpu.so" in needed
    own = {"libtorch_cpu.so", "libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6"}
    assert needed <= own | {"ld-linux-x86-64.so.2"}  # the last with the static CUDA runtime
    assert "RPATH" not in listing
    assert "RUNPATH" not in listing


@needs_nm
@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_variants_define_names_in_their_own_namespace_alone(isa):
    """A weak symbol of two variants would be merged: the wide one could then run anywhere."""
    objects = sorted(OBJECTS.glob(f"*/cpu/*.{isa}.o"))
    if not objects:
        pytest.skip("the object files of the build are not here")
    for path in objects:
        defined = [name for kind, name in symbols(path) if kind in "TWVu"]
        # where memory is freed as an exception passes: a pointer, the same in all variants, no code
        defined = [name for name in defined if name != "DW.ref.__gxx_personality_v0"]
        assert defined, path
        assert all(name.startswith(f"openseg::{isa}::") for name in defined), (path, defined)


OTHER = """
import sys, torch
torch.ops.load_library(sys.argv[1])
logits = torch.tensor([[[[0.0, 3.0]], [[2.0, 0.5]]]])
labels, confidence = torch.ops.openseg.upsample_argmax(logits, [1, 4], True, True)
assert labels.tolist() == [[[1, 1, 0, 0]]], labels
assert confidence.shape == (1, 1, 4)
a = torch.tensor([0, 1, 1, 255])
matrix, invalid = torch.ops.openseg.confusion_matrix(a, a, 2, 255)
assert matrix.tolist() == [[1, 0], [0, 2]] and invalid.tolist() == [0, 0]
print(sys.version.split()[0], torch.__version__, torch.ops.openseg.cpu_capability())
"""


def test_loads_into_another_python_and_torch():
    other = os.environ.get("OPENSEG_OTHER_PYTHON")
    if other is None:
        pytest.skip("OPENSEG_OTHER_PYTHON names no interpreter with another torch")
    done = subprocess.run([other, "-c", OTHER, str(BINARY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
