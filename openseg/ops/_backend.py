# SPDX-License-Identifier: MIT
"""Chooses the implementation that runs one call of an operator.

An operator's api.py lists its backends, fastest first, each with what stands in the way of this
call (None: it can run). `backend="auto"` takes the first that can run and says at debug level why;
a backend that is asked for by name runs or raises with the reason. The environment variable
OPENSEG_BACKEND, read at import, stands for every "auto".
"""

import importlib.util
import logging
import os
from collections.abc import Collection, Mapping
from typing import Any

import torch

from openseg import _ext

AUTO = os.environ.get("OPENSEG_BACKEND", "auto")
_MOST_REGIONS = 256  # of a pixel, on a GPU
_NAMES = ("auto", "reference", "cpp", "cuda", "triton")
_HAS_TRITON = importlib.util.find_spec("triton") is not None
# Triton reads it when it is imported, and runs kernels on a CPU then, one program after another
_INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
_log = logging.getLogger("openseg")

if AUTO not in _NAMES:
    raise ValueError(f"OPENSEG_BACKEND is {AUTO!r}, expected one of {', '.join(_NAMES)}")


def cpp_obstacle(kernel: Any, tensor: torch.Tensor, dtypes: Collection[torch.dtype]) -> str | None:
    """Why the CPU kernel (None when it is not in the binary) cannot take `tensor`."""
    if kernel is None:
        return _ext.reason or "the binary has no such operator: build it again"
    if tensor.device.type != "cpu":
        return f"it serves CPU tensors, this one is on {tensor.device}"
    if tensor.dtype not in dtypes:
        return f"it serves {', '.join(map(str, dtypes))}, this tensor is {tensor.dtype}"
    return None


def cuda_obstacle(kernel: Any, tensor: torch.Tensor, dtypes: Collection[torch.dtype]) -> str | None:
    """Why the CUDA kernel (`kernel` is None when it is not in the binary) cannot take `tensor`."""
    if kernel is None:
        return _ext.reason or "the binary has no such operator: build it again"
    if not _ext.with_cuda:
        return _ext.NO_CUDA
    if tensor.device.type != "cuda" or torch.version.cuda is None:
        return f"it serves tensors of NVIDIA GPUs, this one is on {tensor.device}"
    if tensor.dtype not in dtypes:
        return f"it serves {', '.join(map(str, dtypes))}, this tensor is {tensor.dtype}"
    return _ext.gpu_obstacle(tensor.device)


@torch.compiler.assume_constant_result  # a graph is compiled for one GPU
def _older_gpu(device: torch.device) -> str | None:
    """Why Triton has too little shared memory for blocks of ours on this NVIDIA GPU."""
    if device.type != "cuda" or torch.version.cuda is None or not torch.cuda.is_available():
        return None
    capability = torch.cuda.get_device_capability(device)
    if capability >= (8, 0):
        return None
    found = ".".join(map(str, capability))
    return f"it serves NVIDIA GPUs from compute capability 8.0 on, {device} has {found}"


def triton_obstacle(tensor: torch.Tensor, dtypes: Collection[torch.dtype]) -> str | None:
    """Why the Triton kernels cannot take `tensor`."""
    if not _HAS_TRITON:
        return 'Triton is not installed: `pip install "openseg[triton]"`'
    if tensor.device.type not in ("cuda", "xpu", *(["cpu"] if _INTERPRETED else [])):
        return (
            f"it serves tensors of GPUs, this one is on {tensor.device}; with TRITON_INTERPRET=1 "
            "it is interpreted on a CPU, for tests"
        )
    if old := _older_gpu(tensor.device):
        return old
    if _INTERPRETED and tensor.dtype in (torch.bfloat16, torch.float16):
        return f"Triton's interpreter has no right products of {tensor.dtype}"
    if tensor.dtype not in dtypes:
        return f"it serves {', '.join(map(str, dtypes))}, this tensor is {tensor.dtype}"
    return None


def devices_obstacle(*tensors: torch.Tensor) -> str | None:
    """Why kernels, which read the memory of one device, cannot take these."""
    devices = [str(tensor.device) for tensor in tensors]
    if len(set(devices)) == 1:
        return None
    return f"it serves tensors of one device, got {', '.join(devices)}"


def mixed_obstacle(*tensors: torch.Tensor) -> str | None:
    """Why kernels that serve tensors of one device and dtype cannot take these."""
    dtypes = [str(tensor.dtype) for tensor in tensors]
    if len(set(dtypes)) == 1:
        return devices_obstacle(*tensors)
    return f"it serves one dtype, got {', '.join(dtypes)}"


def allows_tf32() -> bool:
    """Whether torch's switch lets products of float32 on NVIDIA GPUs round their factors to TF32.

    The new form of the switch makes the old one unreadable, and Dynamo reads the old one alone.
    """
    if torch.compiler.is_compiling():
        return torch.backends.cuda.matmul.allow_tf32
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def scale_of(scale: float | None, channels: int) -> float:
    """The factor on scores of so many channels; TypeError for a tensor."""
    if isinstance(scale, torch.Tensor):
        raise TypeError(
            "scale must be a number, got a tensor, which would have no gradient: multiply the "
            "first argument by it"
        )
    return channels**-0.5 if scale is None else scale


def regions_obstacle(regions: int) -> str | None:
    """Why GPU kernels, which hold all scores of a pixel, cannot serve so many regions."""
    if regions <= _MOST_REGIONS:
        return None
    return f"it serves {_MOST_REGIONS} regions at most, got {regions}"


def choose(operator: str, backend: str, obstacles: Mapping[str, str | None]) -> str:
    """The backend for one call; `obstacles` is ordered, fastest first.

    "auto" never takes Triton's interpreter.

    Raises ValueError for an unknown name, RuntimeError for one that cannot run this call.
    """
    if backend not in _NAMES:
        raise ValueError(f"{operator}: backend is {backend!r}, expected one of {', '.join(_NAMES)}")
    asked = AUTO if backend == "auto" else backend
    if asked == "auto":
        slow = "triton" if _INTERPRETED else None
        chosen = next(name for name, why in obstacles.items() if why is None and name != slow)
        if not torch.compiler.is_compiling():
            _log.debug("%s: %s; obstacles: %s", operator, chosen, obstacles)
        return chosen
    obstacle = obstacles.get(asked, "it is not written for this operator")
    if obstacle is not None:
        raise RuntimeError(f"{operator}: backend {asked!r} cannot run this call: {obstacle}")
    return asked


def autocast_dtype(tensor: torch.Tensor) -> torch.dtype:
    """What autocast wants of this argument: its dtype of the device, or the tensor's own."""
    device = tensor.device.type
    if _has_autocast(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


@torch.compiler.assume_constant_result
def _has_autocast(device: str) -> bool:
    """Dynamo of torch 2.11 cannot trace the call."""
    return torch.amp.is_autocast_available(device)
