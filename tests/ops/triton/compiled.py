# SPDX-License-Identifier: MIT
"""Compiles kernels for GPUs that are not there: `python -m tests.ops.triton.compiled quick 80 90`.

Operators run on CPU tensors with a driver that only names its target: Triton compiles exactly what
they would launch, and launches nothing. Writes a JSON list, an entry for each kernel.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from openseg.ops import _triton
from openseg.ops.object_attention import triton as attention
from openseg.ops.spatial_gather import triton as gather

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SHARED = {80: 163, 86: 99, 90: 227}  # KiB that a program may have


class Driver:
    """Device `capability` is a GPU of that compute capability."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability

    def get_current_stream(self, device):
        return 0


def map_(channels, size, dtype, last):
    tensor = torch.randn(2, channels, *size).to(dtype)
    return tensor.contiguous(memory_format=torch.channels_last) if last else tensor


def object_attention(dtype, last, channels=256, regions=19):
    query, grad = (map_(channels, (97, 97), dtype, last) for _ in range(2))
    key, value = torch.randn(2, 2, regions, channels).to(dtype)
    attention.object_attention(query, key, value, 0.1)
    attention.object_attention_backward(grad, query, key, value, 0.1)


def spatial_gather(dtype, last, channels=512, regions=19):
    features, logits = map_(channels, (97, 97), dtype, last), map_(regions, (97, 97), dtype, last)
    regions, statistics = gather.spatial_gather(features, logits, 1.0)
    grad = regions.to(dtype)
    gather.spatial_gather_backward(grad, features, logits, regions, statistics, 1.0)


CASES = [object_attention, spatial_gather]
CONFIGURATIONS = [(torch.bfloat16, True, {})]
MORE = [
    (torch.bfloat16, False, {"regions": 150}),
    (torch.float16, True, {"regions": 171}),
    (torch.float32, True, {"regions": 150}),
]


def compile_only(capability, thorough):
    """(name, kernel) of all that the operators launch."""
    compiled, run = [], JITFunction.run

    def compile_(self, *arguments, grid, warmup, **options):
        compiled.append((self.__name__, run(self, *arguments, grid=grid, warmup=True, **options)))

    triton.runtime.driver.set_active(Driver(capability))
    _triton.shared_memory = lambda tensor: SHARED[capability] << 10
    JITFunction.run = compile_
    try:
        for case in CASES:
            for dtype, last, sizes in CONFIGURATIONS + (MORE if thorough else []):
                case(dtype, last, **sizes)
    finally:
        JITFunction.run = run
    return compiled


def described(name, kernel, capability):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [CUOBJDUMP, "-res-usage", "-sass", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", listing).groups()
    return {
        "kernel": name,
        "capability": capability,
        "registers": int(registers),
        "spilled": int(stack) + int(local) + len(re.findall(r"\b(?:LDL|STL)\b", listing)),
        "shared": kernel.metadata.shared,
        "most_shared": SHARED[capability] << 10,
        "float_atomics": re.findall(r"\b(?:ATOM|ATOMG|ATOMS|RED|REDG)\.\S*F\d+\S*", listing),
    }


if __name__ == "__main__":
    json.dump(
        [
            described(*kernel, int(capability))
            for capability in sys.argv[2:]
            for kernel in compile_only(int(capability), sys.argv[1] == "thorough")
        ],
        sys.stdout,
    )
