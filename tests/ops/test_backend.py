# SPDX-License-Identifier: MIT
"""Backend choice: what is asked for runs or raises with the reason."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openseg import _ext, ops
from openseg.ops import _backend

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


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (["8.0", "9.0"], (8, 6), True),
        (["8.0", "9.0"], (9, 0), True),
        (["8.0", "9.0"], (7, 5), False),
        (["8.6"], (8, 0), False),
        (["8.0", "9.0"], (10, 0), False),
        (["8.0+PTX", "9.0"], (12, 0), True),
        (["8.6+PTX"], (8, 0), False),
        (["9.0a"], (9, 0), True),
        (["10.0a"], (10, 3), False),
        (["10.0f"], (10, 3), True),
    ],
)
def test_obstacles_of_a_gpu(monkeypatch, archs, capability, runs):
    """The kernel would not be found there when it is started."""
    monkeypatch.setattr(_ext, "_ARCHS", archs)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    obstacle = _ext.gpu_obstacle(torch.device("cuda:1"))
    assert (obstacle is None) == runs
    if not runs:
        assert "cuda:1 has {}.{}:".format(*capability) in obstacle


@pytest.mark.parametrize(("capability", "runs"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_triton_leaves_older_gpus_to_the_reference(monkeypatch, capability, runs):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    obstacle = _backend._older_gpu(torch.device("cuda:1"))
    assert (obstacle is None) == runs
    assert runs or "from compute capability 8.0 on, cuda:1 has 7.5" in obstacle
    assert _backend._older_gpu(torch.device("cpu")) is None


def arguments_of(name, channels):
    size, regions = (1, channels, 2, 2), (1, 3, channels)
    shapes = {
        "object_attention": [size, regions, regions],
        "self_attention": [size, size, size],
        "spatial_gather": [size, size],
    }[name]
    return [torch.zeros(shape) for shape in shapes]


@pytest.mark.parametrize("name", ["object_attention", "self_attention", "spatial_gather"])
def test_tensors_of_two_devices(name):
    """A kernel would read the memory of the one by an address of the other."""
    given = arguments_of(name, channels=4)
    for moved in range(1, len(given)):
        tensors = [t.to("meta") if i == moved else t for i, t in enumerate(given)]
        with pytest.raises(RuntimeError, match=r"one device, got cpu|on meta|no kernels"):
            getattr(ops, name)(*tensors, backend="cpp")


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


@pytest.mark.parametrize("name", ["object_attention", "self_attention", "spatial_gather"])
def test_a_scale_without_a_gradient_is_refused(name):
    tensors = arguments_of(name, channels=4)
    with pytest.raises(TypeError, match="multiply the first argument by it"):
        getattr(ops, name)(*tensors, scale=torch.ones((), requires_grad=True))


@pytest.mark.parametrize("name", ["object_attention", "self_attention", "spatial_gather"])
def test_maps_without_channels_are_refused(name):
    with pytest.raises(ValueError, match=r"channels|D, Dv >= 1"):
        getattr(ops, name)(*arguments_of(name, channels=0))
