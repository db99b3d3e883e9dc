# SPDX-License-Identifier: MIT
"""setup.py: the edges that it writes, and installs that cannot have kernels.

Compiling is left to the build itself; a copy of the tree gets a planted CUDA file here.
"""

import importlib.util
import itertools
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed"
)


@pytest.fixture
def tree(tmp_path):
    """The files of a build, in a folder that may be spoilt."""
    for name in ("setup.py", "pyproject.toml", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").write_text("# openseg\n")
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "openseg").mkdir()
    (tmp_path / "openseg" / "__init__.py").touch()
    return tmp_path


def edges(tree, cuda):
    """target → (rule, flags) of the build.ninja that setup.py writes there."""
    setup = runpy.run_path(str(tree / "setup.py"), run_name="imported")
    lines = setup["ninja_file"]("c++", ["/torch/include"], ["/torch/lib"], cuda).splitlines()
    found = {}
    for line, following in itertools.pairwise(lines):
        if line.startswith("build "):
            target, rule = line.removeprefix("build ").split(": ")
            found[target] = rule.split()[0], following
    return found


def test_each_variant_has_its_flags(tree):
    found = edges(tree, cuda=None)
    kernel = "csrc/upsample_argmax/cpu/upsample_argmax.cpp"
    assert "-mavx" not in found[f"{kernel}.baseline.o"][1]
    assert "-mavx2" in found[f"{kernel}.avx2.o"][1]
    assert "-mavx512bf16" in found[f"{kernel}.avx512.o"][1]
    assert all("/torch/include" not in found[f"{kernel}.{isa}.o"][1] for isa in ("avx2", "avx512"))
    assert "/torch/include" in found["csrc/module.cpp.o"][1]
    assert all("nvcc" not in rule and "cudart" not in flags for rule, flags in found.values())


def test_cuda_files_have_their_architectures(tree, monkeypatch):
    folder = tree / "csrc" / "upsample_argmax" / "cuda"
    folder.mkdir(exist_ok=True)
    (folder / "plain.cu").touch()
    (folder / "fast_sm90.cu").touch()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")
    found = edges(tree, cuda=Path("/cuda"))
    rule, plain = found["csrc/upsample_argmax/cuda/plain.cu.o"]
    assert rule == "nvcc"
    for code in ("code=sm_80", "code=sm_90", "code=compute_90"):
        assert f",{code} " in plain + " "
    assert "sm_90a" not in plain
    fast = found["csrc/upsample_argmax/cuda/fast_sm90.cu.o"][1]
    assert fast.count("gencode") == 1
    assert "arch=compute_90a,code=sm_90a" in fast
    assert "-lcudart_static" in found["_C.so"][1]
    assert "-DOPENSEG_CUDA" in found["csrc/upsample_argmax/upsample_argmax.cpp.o"][1]


@pytest.mark.parametrize(
    ("choice", "torch_cuda", "wanted"),
    [("auto", None, False), ("auto", "13.0", True), ("1", None, True), ("0", "13.0", False)],
)
def test_when_cuda_is_built(tree, monkeypatch, choice, torch_cuda, wanted):
    home = tree / "cuda"
    for file in ("bin/nvcc", "include/cuda_runtime.h"):
        (home / file).parent.mkdir(parents=True)
        (home / file).touch()
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("OPENSEG_CUDA", choice)
    setup = runpy.run_path(str(tree / "setup.py"), run_name="imported")
    assert setup["wanted_cuda_home"](torch_cuda) == (home if wanted else None)


def build(tree, **environment):
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_no_compiler_is_a_pure_python_install_with_a_reason(tree):
    """A binary from before is gone: it would be older than its source."""
    stale = tree / "openseg" / "_C.abi3.so"
    stale.touch()
    done = build(tree, CXX="no-such-compiler")
    assert done.returncode == 0, done.stderr
    assert "installs without kernels: the C++ compiler 'no-such-compiler'" in done.stderr
    assert not stale.exists()
    info = json.loads((tree / "openseg" / "_build_info.json").read_text())
    assert info["built"] is False
    assert "no-such-compiler" in info["reason"]


def test_required_kernels_are_an_error(tree):
    done = build(tree, CXX="no-such-compiler", OPENSEG_REQUIRE_EXT="1")
    assert done.returncode != 0
    assert "OPENSEG_REQUIRE_EXT=1, and no kernels" in done.stderr


def test_a_setuptools_that_is_too_old_is_told(tree):
    pretend = "import runpy, setuptools; setuptools.__version__ = '70.2.0'"
    command = [sys.executable, "-c", f"{pretend}; runpy.run_path('setup.py', run_name='__main__')"]
    done = subprocess.run([*command, "--version"], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 1
    assert "openseg builds with setuptools 77 or newer, this is 70.2.0" in done.stderr
