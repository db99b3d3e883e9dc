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
from openseg.ops._backend import allows_tf32
from openseg.ops.confusion_matrix import triton as confusion
from openseg.ops.inplace_abn import triton as norm
from openseg.ops.object_attention import triton as attention
from openseg.ops.self_attention import triton as pixel_attention
from openseg.ops.spatial_gather import triton as gather
from openseg.ops.upsample_argmax import triton as argmax
from openseg.ops.upsample_cross_entropy import triton as entropy

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # KiB that a program may have


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
    attention.object_attention(query, key, value, 0.1, allows_tf32())
    attention.object_attention_backward(grad, query, key, value, 0.1, allows_tf32())


def spatial_gather(dtype, last, channels=512, regions=19):
    features, logits = map_(channels, (97, 97), dtype, last), map_(regions, (97, 97), dtype, last)
    known = gather.spatial_gather(features, logits, 1.0, allows_tf32())
    grad = known[0].to(dtype)
    gather.spatial_gather_backward(grad, features, logits, *known, 1.0, allows_tf32())


def self_attention(dtype, last, channels=256, regions=256):
    query, key = (map_(channels, (97, 97), dtype, last) for _ in range(2))
    for value_channels in {regions, 512}:  # that of interlaced attention
        value = map_(value_channels, (97, 97), dtype, last)
        for other in (key, None):
            maps = query, other, value
            known = pixel_attention.self_attention(*maps, 0.1, allows_tf32())
            pixel_attention.self_attention_backward(value, *maps, *known, 0.1, allows_tf32())


def wide_query(dtype, last, channels=512, regions=256):
    """Its blocks take more of shared memory than those of the value."""
    if dtype.itemsize == 2:
        query, key, value = (map_(n, (97, 97), dtype, last) for n in (channels, channels, 256))
        pixel_attention.self_attention(query, key, value, 0.1, allows_tf32())


def one_pixel(dtype, last, channels=32, regions=32):
    """A number that is 1 is a constant of the kernel, not a value of it."""
    maps = [map_(channels, (1, 1), dtype, last) for _ in range(3)]
    known = pixel_attention.self_attention(*maps, 0.1, allows_tf32())
    pixel_attention.self_attention_backward(maps[2], *maps, *known, 0.1, allows_tf32())


def upsample_argmax(dtype, last, channels=19, regions=19):
    for confidence in (True, False):
        argmax.upsample_argmax(map_(regions, (13, 17), dtype, last), (97, 129), True, confidence)


def upsample_cross_entropy(dtype, last, channels=19, regions=19):
    logits, target = map_(regions, (13, 17), dtype, last), torch.zeros(2, 97, 129).long()
    scale = torch.ones(())
    for weight, smoothing in ((torch.ones(regions), 0.1), (None, 0.0)):
        _, lse, *_ = entropy.upsample_cross_entropy(
            logits, target, weight, True, 255, smoothing, "", 0.0, 0, False
        )
        entropy.upsample_cross_entropy_backward(
            logits, target, weight, lse, scale, True, 255, smoothing
        )


def confusion_matrix(dtype, last, channels=19, regions=19):
    labels = torch.zeros(2, 97, 129, dtype=torch.uint8)
    confusion.confusion_matrix(labels, labels, regions, 255)


def inplace_abn(dtype, last, channels=256, regions=19):
    x, grad = (map_(channels, (97, 97), dtype, last) for _ in range(2))
    affine = torch.ones(2, channels)
    z, statistics = norm.inplace_abn(x, None, affine, 1e-5, "elu", 0.1)
    norm.inplace_abn_backward(grad, z, statistics, affine, None, 1e-5, "elu", 0.1, False)


CASES = [
    inplace_abn,
    object_attention,
    spatial_gather,
    self_attention,
    wide_query,
    one_pixel,
    upsample_argmax,
    upsample_cross_entropy,
    confusion_matrix,
]
QUICK = [(CASES, torch.bfloat16, True, {})]
MORE = [
    (CASES, torch.bfloat16, False, {"regions": 150}),
    (CASES, torch.float16, True, {"regions": 171}),
    (CASES, torch.float32, True, {"regions": 150}),
    (CASES, "tf32", True, {}),
]
WIDE = [([self_attention], torch.float32, True, {"channels": 512, "regions": 512})]
# registers do not always suffice for these, shared memory has to
MORE_WIDE = [
    (CASES if n <= 256 else [self_attention], dtype, True, {"channels": channels, "regions": n})
    for dtype in (torch.float32, "tf32", torch.bfloat16)
    for channels in (64, 300, 512)
    for n in (64, 256, 300)
]
CONFIGURATIONS = {
    "quick": QUICK,
    "thorough": QUICK + MORE,
    "wide": WIDE,
    "thorough wide": WIDE + MORE_WIDE,
}


def compile_only(capability, configurations):
    """(name, kernel) of all that the operators launch, each once."""
    compiled, run = {}, JITFunction.run

    def compile_(self, *arguments, grid, warmup, **options):
        kernel = run(self, *arguments, grid=grid, warmup=True, **options)
        compiled[kernel.hash] = self.__name__, kernel

    triton.runtime.driver.set_active(Driver(capability))
    _triton.shared_memory = lambda tensor: SHARED[capability] << 10
    JITFunction.run = compile_
    try:
        for cases, dtype, last, sizes in configurations:
            tf32 = dtype == "tf32"
            torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
            for case in cases:
                case(torch.float32 if tf32 else dtype, last, **sizes)
    finally:
        JITFunction.run = run
    return compiled.values()


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
        "spilled": int(stack) + int(local),
        "shared": kernel.metadata.shared,
        "most_shared": SHARED[capability] << 10,
        "float_atomics": re.findall(r"\b(?:ATOM|ATOMG|ATOMS|RED|REDG)\.\S*F\d+\S*", listing),
    }


if __name__ == "__main__":
    json.dump(
        [
            described(*kernel, int(capability))
            for capability in sys.argv[2:]
            for kernel in compile_only(int(capability), CONFIGURATIONS[sys.argv[1]])
        ],
        sys.stdout,
    )
