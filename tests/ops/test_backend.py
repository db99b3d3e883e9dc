# SPDX-License-Identifier: MIT
"""Backend choice: what is asked for runs or raises with the reason."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openseg import ops
from openseg.ops import _backend
from openseg.ops.interlaced_attention import autograd as interlaced_attention
from openseg.ops.object_attention import autograd as object_attention
from openseg.ops.self_attention import autograd as self_attention
from openseg.ops.spatial_gather import autograd as spatial_gather

OBSTACLES = {"cpp": "the tensor is blue", "reference": None}


def test_auto_takes_the_first_that_can_run_and_says_so(caplog):
    with caplog.at_level(logging.DEBUG, logger="openseg"):
        assert _backend.choose("op", "auto", OBSTACLES) == "reference"
    assert "the tensor is blue" in caplog.text
    assert _backend.choose("op", "auto", {"cpp": None, "reference": None}) == "cpp"


def test_named_backend_raises_with_the_reason():
    with pytest.raises(RuntimeError, match="'cpp' cannot run this call: the tensor is blue"):
        _backend.choose("op", "cpp", OBSTACLES)
    with pytest.raises(RuntimeError, match="'triton' cannot run this call: it is not written"):
        _backend.choose("op", "triton", OBSTACLES)
    with pytest.raises(ValueError, match="backend is 'cuba', expected one of auto, reference"):
        _backend.choose("op", "cuba", OBSTACLES)


def test_the_environment_stands_for_auto(monkeypatch):
    monkeypatch.setattr(_backend, "AUTO", "reference")
    assert _backend.choose("op", "auto", {"cpp": None, "reference": None}) == "reference"
    assert _backend.choose("op", "cpp", {"cpp": None, "reference": None}) == "cpp"
    monkeypatch.setattr(_backend, "AUTO", "cpp")
    with pytest.raises(RuntimeError, match="the tensor is blue"):
        _backend.choose("op", "auto", OBSTACLES)


def test_obstacles_of_a_kernel():
    tensor = torch.zeros(1, dtype=torch.float64)
    assert "float64" in _backend.cpp_obstacle(object(), tensor, (torch.float32,))
    assert "meta" in _backend.cpp_obstacle(object(), tensor.to("meta"), (torch.float64,))
    assert _backend.cpp_obstacle(object(), tensor, (torch.float64,)) is None


@pytest.mark.parametrize(
    ("operator", "module", "others"),
    [
        (ops.object_attention, object_attention, [(1, 3, 8)] * 2),
        (ops.self_attention, self_attention, [(1, 8, 2, 2)] * 2),
        (ops.interlaced_attention, interlaced_attention, [(1, 8, 2, 2)] * 2),
        (ops.spatial_gather, spatial_gather, [(1, 3, 2, 2)]),
    ],
)
def test_no_kernel_takes_tensors_of_several_devices(monkeypatch, operator, module, others):
    """It would take an address on one device for one on another."""
    monkeypatch.setitem(module.FORWARD, "cpp", object())
    first, *rest = (torch.zeros(shape) for shape in [(1, 8, 2, 2), *others])
    more = {"groups": (1, 1), "kind": "long"} if operator is ops.interlaced_attention else {}
    with pytest.raises(RuntimeError, match=r"on meta|one device, got cpu, .*meta"):
        operator(first, *rest[:-1], rest[-1].to("meta"), backend="cpp", **more)
    assert _backend.devices_obstacle(first, *rest) is None


def test_obstacles_of_triton(monkeypatch):
    tensor, dtypes = torch.zeros(1), (torch.float32, torch.bfloat16)
    monkeypatch.setattr(_backend, "_INTERPRETED", False)
    monkeypatch.setattr(_backend, "_HAS_TRITON", True)
    assert "GPUs, this one is on cpu" in _backend.triton_obstacle(tensor, dtypes)
    monkeypatch.setattr(_backend, "_INTERPRETED", True)
    assert _backend.triton_obstacle(tensor, dtypes) is None
    assert "interpreter" in _backend.triton_obstacle(tensor.bfloat16(), dtypes)
    assert "float64" in _backend.triton_obstacle(tensor.double(), dtypes)
    assert _backend.choose("op", "auto", {"triton": None, "reference": None}) == "reference"
    monkeypatch.setattr(_backend, "_HAS_TRITON", False)
    assert "pip install" in _backend.triton_obstacle(tensor, dtypes)


def test_a_package_without_binary_works_and_tells_why(tmp_path):
    """The Python files alone: auto takes the reference, cpp raises the reason of the build."""
    source = Path(_backend.__file__).parents[1]
    for file in source.rglob("*.py"):
        target = tmp_path / "openseg" / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text())
    (tmp_path / "openseg" / "_build_info.json").write_text('{"built": false, "reason": "no g++"}')
    code = """
import sys
sys.modules["triton"] = None  # not installed
import torch
from openseg import ops
a = torch.tensor([0, 1])
assert ops.confusion_matrix(a, a, 2).tolist() == [[1, 0], [0, 1]]
for backend in ("cpp", "triton"):
    try:
        ops.confusion_matrix(a, a, 2, backend=backend)
    except RuntimeError as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert "no kernels: no g++" in done.stdout, done.stderr
    assert "Triton is not installed: `pip install" in done.stdout
