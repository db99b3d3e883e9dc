# SPDX-License-Identifier: MIT
"""What a bug report, and the folder of a run, say of the machine and of the binary."""

import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import openseg
from openseg import _ext, ops


def _first_line(*command: str) -> str:
    """The first line that a tool prints about its version, or that it is missing."""
    if shutil.which(command[0]) is None:
        return "not found"
    done = subprocess.run(command, capture_output=True, text=True)
    lines = (done.stdout or done.stderr).splitlines()
    return next((line for line in lines if "release" in line), lines[0] if lines else "no answer")


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.split(":")[1].strip() for line in file if "model name" in line), "")


def _commit() -> str:
    """The commit of a checkout; an installed package has none."""
    if shutil.which("git") is None:
        return "unknown"
    folder = str(Path(openseg.__file__).parent)
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() or "none"


def operator_table() -> dict[str, dict[str, str]]:
    """Operator → backend → "available" or the reason why not."""
    table = {}
    for name in filter(str.islower, ops.__all__):  # operators: types are capitalised
        states = {"reference": "available"}
        for backend, key in (("cpp", "CPU"), ("cuda", "CUDA")):
            states[backend] = _obstacle(name, backend, key) or "available"
        table[name] = states
    return table


def _obstacle(operator: str, backend: str, key: str) -> str | None:
    """Why no call of an operator can run its kernel; `key` is what torch calls the device."""
    kernel = _ext.operator(operator)
    if _ext.reason is not None:
        return _ext.reason
    if backend == "cuda" and not _ext.with_cuda:
        return _ext.NO_CUDA
    if kernel is None or not kernel.has_kernel_for_dispatch_key(getattr(torch._C.DispatchKey, key)):
        return "not written for this operator"
    if backend != "cuda":
        return None
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "torch finds no NVIDIA GPU here"
    return _ext.gpu_obstacle(torch.device("cuda"))


def collect() -> dict[str, Any]:
    """All of it as plain types."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    capability = torch.ops.openseg.cpu_capability() if _ext.reason is None else "no kernels"
    return {
        "openseg": openseg.__version__,
        "commit": _commit(),
        "os": platform.platform(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "torch CUDA": torch.version.cuda or "none",
        "GPUs": gpus,
        "processor": _processor() if platform.system() == "Linux" else platform.processor(),
        "threads": torch.get_num_threads(),
        "compiler": _first_line("c++", "--version"),
        "nvcc": _first_line("nvcc", "--version"),
        "kernels": _ext.reason or "loaded",
        "kernels' CPU capability": capability,
        "build": _ext.build_info(),
        "operators": operator_table(),
    }
