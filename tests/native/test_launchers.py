# SPDX-License-Identifier: MIT
"""The raw kernels without torch, under AddressSanitizer and UndefinedBehaviorSanitizer.

CMake builds its module into build/cmake-sanitize, which is kept: only what changed is compiled
again. The kernels run in a subprocess that preloads the sanitizer.
"""

import importlib.util
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "cmake-sanitize"
needed = [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None]
needed += [] if importlib.util.find_spec("pybind11") else ["pybind11"]
pytestmark = [
    pytest.mark.skipif(bool(needed), reason=f"not installed: {', '.join(needed)}"),
    pytest.mark.xdist_group("cmake"),
]


@pytest.fixture(scope="module")
def configured():
    command = ["cmake", "-S", ROOT, "-B", BUILD, "-G", "Ninja", "-DOPENSEG_SANITIZE=ON"]
    done = subprocess.run(
        [*command, f"-DPython_EXECUTABLE={sys.executable}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((BUILD / "compile_commands.json").read_text())


def test_cmake_builds_the_files_of_setup_py(configured):
    """Same files, and the same instruction-set flags for each variant."""
    setup = runpy.run_path(str(ROOT / "setup.py"), run_name="imported")
    files = setup["sources"]()
    expected = {(file, "_C") for file in files["cxx"]} | {
        (file, f"kernels_{isa}") for file in files["cpu"] for isa in setup["ISA_FLAGS"]
    }
    found = set()
    for entry in configured:
        target = entry["command"].split(" -o CMakeFiles/")[1].split(".dir/")[0]
        if target != "openseg_launchers":
            found.add((Path(entry["file"]).relative_to(ROOT).as_posix(), target))
            flags = setup["ISA_FLAGS"].get(target.removeprefix("kernels_"), "").split()
            machine = {flag for flag in entry["command"].split() if flag.startswith("-m")}
            assert machine == {flag for flag in flags if flag.startswith("-m")}
    assert found == expected


KERNELS = """
import ctypes
import numpy as np
import openseg_launchers as kernels

def variants():
    for isa in ("baseline", "avx2", "avx512", "amx"):
        try:
            kernels.confusion_matrix(np.zeros(1, np.uint8), np.zeros(1, np.uint8), 1, 255, isa)
        except RuntimeError as error:
            assert "this processor cannot run it" in str(error)
        else:
            yield isa

rng = np.random.default_rng(0)
isas = list(variants())
for classes, small, size in [(1, (1, 1), (1, 1)), (3, (5, 7), (33, 41)), (19, (9, 13), (4, 3)),
                             (33, (2, 1), (3, 300)), (257, (3, 65), (9, 129))]:
    logits = rng.standard_normal((2, classes, *small)).astype(np.float32)
    strided = np.ascontiguousarray(logits.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    half = logits.astype(np.float16)
    bits = (logits.view(np.uint32) >> 16).astype(np.uint16)
    rounded = (bits.astype(np.uint32) << 16).view(np.float32)
    for isa in isas:
        for align in (True, False):
            def run(x, two=False):
                kernels.use_two_threads(two)
                return kernels.upsample_argmax(x, *size, align, isa)
            labels, confidence = run(logits)
            assert labels.max() < classes and ((confidence > 0) & (confidence <= 1.000001)).all()
            widened = half.astype(np.float32)
            for other, same in [(strided, logits), (half, widened), (bits, rounded)]:
                one, two = run(other), run(same, two=True)
                assert (one[0] == two[0]).all() and (one[1] == two[1]).all()
for count in (0, 1, 63, 64, 65, 100003):
    for first, second in [(np.uint8, np.int64), (np.int64, np.int32), (np.int32, np.uint8)]:
        target = rng.integers(0, 19, count).astype(first)
        prediction = rng.integers(0, 19, count).astype(second)
        expected = np.zeros((19, 19), np.int64)
        np.add.at(expected, (target.astype(int), prediction.astype(int)), 1)
        for isa in isas:
            matrix, invalid = kernels.confusion_matrix(prediction, target, 19, 255, isa)
            assert (matrix == expected).all() and invalid[0] == 0
            matrix, invalid = kernels.confusion_matrix(prediction, target, 18, 255, isa)
            bad = (target == 18) | (prediction == 18)
            assert invalid[0] == bad.sum() and (not bad.any() or invalid[1] == bad.argmax())

from tests.emulator import arrays, operators
from tests.emulator.kernels import KernelError, Kernels

class CpuKernels(Kernels):  # of one instruction set, called as those for a GPU
    def __init__(self, isa):
        self._library, self._isa = ctypes.CDLL(kernels.__file__), isa.encode()

    def call_plainly(self, launcher, *arguments):
        function = getattr(self._library, launcher)
        function.restype = ctypes.c_char_p
        if message := function(self._isa, *arguments):
            raise KernelError(message.decode())

for operator in ("self_attention", "interlaced_attention", "object_attention", "spatial_gather",
                 "inplace_abn", "upsample_cross_entropy"):
    if operator == "upsample_cross_entropy":
        arrays.FLOATING = ("float32", "bfloat16")  # what it serves on a CPU
    for two, isa in enumerate(isas):
        kernels.use_two_threads(two % 2 == 1)
        operators.module(operator).check(CpuKernels(isa))
print("checked", *isas)
"""


def test_kernels_under_sanitizers(configured):
    built = subprocess.run(
        ["cmake", "--build", BUILD, "--target", "openseg_launchers"], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout[-3000:]
    names = ["libasan.so", "libstdc++.so"]  # the sanitizer looks for __cxa_throw when it starts
    libraries = [
        subprocess.run(["c++", f"-print-file-name={name}"], capture_output=True, text=True).stdout
        for name in names
    ]
    if not all(Path(library).is_absolute() for library in libraries):
        pytest.skip("the compiler has no libasan.so")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(library.strip() for library in libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks at exit
        "PYTHONPATH": f"{BUILD}{os.pathsep}{ROOT}",
    }
    done = subprocess.run(
        [sys.executable, "-c", KERNELS], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("checked baseline")
