# SPDX-License-Identifier: MIT
"""Loads the binary with the kernels, or keeps the reason why there is none.

Importing this module never fails and never warns: a backend that is asked for by name, and
`python -m openseg.collect_env`, show the reason.
"""

import json
from pathlib import Path
from typing import Any

import torch

_BINARY = Path(__file__).with_name("_C.abi3.so")
_BUILD_INFO = Path(__file__).with_name("_build_info.json")
_HINT = "build them with `pip install --no-build-isolation -e .` where torch is installed"


def build_info() -> dict[str, Any]:
    """What the build wrote (built, reason, torch, compiler, isas, cuda, archs), {} when unbuilt."""
    return json.loads(_BUILD_INFO.read_text()) if _BUILD_INFO.exists() else {}


def _load() -> str | None:
    if not _BINARY.exists():
        return f"openseg has no kernels: {build_info().get('reason') or 'not built yet'} ({_HINT})"
    try:
        torch.ops.load_library(str(_BINARY))
    except OSError as error:
        return f"the kernels do not load into torch {torch.__version__}: {error} ({_HINT})"
    return None


reason: str | None = _load()
"""Why there are no kernels; None when they are loaded."""


with_cuda: bool = reason is None and bool(build_info().get("cuda"))
"""Whether the kernels that are loaded are for NVIDIA GPUs too."""

_ARCHS: list[str] = build_info().get("archs", [])

NO_CUDA = "the binary was built without CUDA: set OPENSEG_CUDA=1 and build it again"


@torch.compiler.assume_constant_result  # a graph is compiled for one GPU
def gpu_obstacle(device: torch.device) -> str | None:
    """Why this NVIDIA GPU cannot run the kernels: the binary has code for some architectures."""
    if not torch.cuda.is_available():  # a tensor without values can be on a GPU that is not there
        return None
    capability = torch.cuda.get_device_capability(device)
    if any(_runs_on(capability, arch) for arch in _ARCHS):
        return None
    return (
        f"the binary was built for compute capability {', '.join(_ARCHS)}, {device} has "
        f"{'.'.join(map(str, capability))}: add it to TORCH_CUDA_ARCH_LIST and build it again"
    )


def _runs_on(capability: tuple[int, int], arch: str) -> bool:
    """Machine code runs on later GPUs of its generation, PTX on all later ones, 9.0a on 9.0."""
    number, _, ptx = arch.partition("+")
    major, minor = map(int, number.rstrip("af").split("."))
    if number.endswith("a"):
        return capability == (major, minor)
    return capability >= (major, minor) and (bool(ptx) or capability[0] == major)


def operator(name: str) -> Any:
    """`torch.ops.openseg.<name>` of the binary, or None when it has no such operator."""
    found = getattr(torch.ops.openseg, name, None) if reason is None else None
    return found.default if found else None
