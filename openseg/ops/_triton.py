# SPDX-License-Identifier: MIT
"""What the Triton kernels share on the host: registration, memory formats, block sizes.

`torch.ops.openseg_triton.<op>` has the schema of `torch.ops.openseg.<op>` and is as opaque to a
compiled graph. Triton itself is imported at the first call.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("openseg_triton", "DEF")
_PROGRAMS = 256  # enough for the multiprocessors of any GPU; fixed, so that sums keep their order


def operator(folder: str, schema: str, fake: Callable[..., Any]) -> Any:
    """Registers the function that the schema names, of openseg/ops/<folder>/triton.py."""
    name = schema.partition("(")[0]

    def run(*arguments: Any) -> Any:
        module = importlib.import_module(f"openseg.ops.{folder}.triton")
        with torch.cuda.device_of(arguments[0]):
            return getattr(module, name)(*arguments)

    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"openseg_triton::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.openseg_triton, name).default


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Runs a kernel on the current stream; whether multiply-adds fuse is no default of Triton's."""
    kernel[grid](*arguments, enable_fp_fusion=True, **options)


def precision(allow_tf32: bool) -> str:
    """The `input_precision` of tl.dot; most AMD GPUs refuse TF32, whatever the dtype."""
    return "tf32" if allow_tf32 and torch.version.hip is None else "ieee"


def shared_memory(tensor: Tensor) -> int:
    """Bytes that one program may have on the tensor's GPU."""
    if tensor.device.type != "cuda":
        return 99 << 10
    properties = torch.cuda.get_device_properties(tensor.device)
    return getattr(properties, "shared_memory_per_block_optin", 64 << 10)  # AMD has 64 KiB


def fits(tensor: Tensor) -> bool:
    """Whether large blocks of the map fit into registers: half precision, side by side."""
    return tensor.element_size() == 2 and tensor.stride(1) == 1


def power_of_two(number: int, least: int = 16, most: int = 1 << 30) -> int:
    """The first power of two that is not less, within bounds; 16 is the least of tl.dot."""
    return min(max(1 << (number - 1).bit_length(), least), most)


def split(length: int, block: int, others: int) -> tuple[int, int]:
    """(parts, length of a part, a multiple of `block`), for `others` programs of each part."""
    blocks = -(-length // block)
    each = -(-blocks // max(1, min(blocks, _PROGRAMS // max(1, others))))
    return -(-blocks // each), each * block


def walkable(tensor: Tensor) -> Tensor:
    """The map [B, C, H, W] with one stride from pixel to pixel: itself, or a copy in its format."""
    height, width = tensor.shape[2:]
    if height == 1 or width == 1 or tensor.stride(2) == width * tensor.stride(3):
        return tensor
    last = tensor.stride(1) == 1 and tensor.shape[1] > 1
    return tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def strides(tensor: Tensor) -> tuple[int, int, int]:
    """Of image, pixel and channel of a walkable map [B, C, H, W]."""
    pixel = tensor.stride(3 if tensor.shape[3] > 1 else 2)
    return tensor.stride(0), pixel, tensor.stride(1)


def cell_pixels(size: Sequence[int], out: Sequence[int]) -> int:
    """No fewer than the output pixels that lie between any four neighbours of an input map.

    Where corners are not aligned, half a step beyond the map belongs to the first and the last.
    """
    down, across = (
        min(o, max(-(-o // max(1, i - 1)), -(-3 * o // (2 * i))) + 1)
        for i, o in zip(size, out, strict=True)
    )
    return down * across


def upsampling_obstacle(size: Sequence[int], out: Sequence[int]) -> str | None:
    """Why kernels cannot count positions of this upsampling in 32 bits."""
    if all(i * o < 1 << 29 for i, o in zip(size, out, strict=True)):
        return None
    return f"upsampling from {tuple(size)} to {tuple(out)} is beyond what it counts in 32 bits"
