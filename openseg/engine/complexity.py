# SPDX-License-Identifier: MIT
"""Parameters, operations and activations of a network by its parts, without running it.

Everything happens on tensors without storage, so a network of any size is counted in seconds and
in no memory; kernels are those that would run on this machine's CPU.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

TOTAL = "total"


class Part(NamedTuple):
    """A child of a network, or `TOTAL`.

    flops: of the forward pass, two for a multiplication with its addition, in convolutions and
    products of matrices alone. activations: bytes that the forward pass keeps for the backward one
    (float32; norms in eval mode), without parameters and inputs.
    """

    name: str
    parameters: int
    flops: int
    activations: int


def measure(build: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> list[Part]:
    """Count the children of the module that `build` returns, in their order, and all of it.

    shapes: of the inputs of its forward pass. What happens outside of the children is in the total.
    """
    with FakeTensorMode():
        module = build().eval()
        inputs = [torch.empty(shape) for shape in shapes]
        kept = _Kept([*module.parameters(), *module.buffers(), *inputs])
        for name, child in module.named_children():
            child.register_forward_pre_hook(lambda *_, name=name: kept.enter(name))
            child.register_forward_hook(lambda *_: kept.enter(""))
        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(kept.pack, _unpack):
            module(*inputs)
    flops = {name: sum(count.values()) for name, count in counter.get_flop_counts().items()}
    root = type(module).__name__
    parts = [
        Part(name, _parameters(child), flops.get(f"{root}.{name}", 0), kept.bytes[name])
        for name, child in module.named_children()
    ]
    activations = sum(kept.bytes.values())
    return [*parts, Part(TOTAL, _parameters(module), flops.get("Global", 0), activations)]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class _Kept:
    """Bytes of the storages that autograd keeps, each counted once, by the part that ran then."""

    def __init__(self, known: list[Tensor]) -> None:
        self.bytes: defaultdict[str, int] = defaultdict(int)
        self._part = ""
        # The tensors are kept, so that no other storage gets the address of a freed one.
        self._seen = {tensor.untyped_storage()._cdata: tensor for tensor in known}

    def enter(self, part: str) -> None:
        self._part = part

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = tensor
            self.bytes[self._part] += storage.nbytes()
        return tensor


def _unpack(tensor: Tensor) -> Tensor:
    return tensor


def table(parts: list[Part]) -> str:
    """The parts as lines: parameters in millions, GFLOPs, MiB."""
    lines = [f"{'part':16}{'parameters, M':>16}{'GFLOPs':>12}{'activations, MiB':>20}"]
    lines += [
        f"{name:16}{parameters / 1e6:16.3f}{flops / 1e9:12.1f}{activations / 2**20:20.1f}"
        for name, parameters, flops, activations in parts
    ]
    return "\n".join(lines)
