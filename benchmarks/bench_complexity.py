# SPDX-License-Identifier: MIT
"""The context heads at 1 × 2048 × 128 × 128 beside the published figures of them.

`python benchmarks/bench_complexity.py` counts, checks each count against the published one, and
measures forward passes here. Operations are two for a multiplication with its addition, as in the
published figures; a head has the 3×3 convolution to 512 channels that stands before it.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import _timing
import torch
from torch import Tensor, nn

from openseg.engine.complexity import measure
from openseg.layers import (
    AtrousPyramidPooling,
    BaseObjectContext,
    ConvNormAct,
    InterlacedSelfAttention,
    ObjectContext,
    PyramidPooling,
)

SHAPE = (1, 2048, 128, 128)
CLASSES = 19


class RegionHead(nn.Module):
    """OCR, given the logits of the regions, which another head makes."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = ConvNormAct(2048, 512, 3)
        self.context = ObjectContext(512, 256, 512)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        return self.context(self.reduce(features), logits)


def reduced(context: nn.Module, bias: bool = True) -> nn.Module:
    return nn.Sequential(ConvNormAct(2048, 512, 3, bias=bias), context)


def pooling() -> nn.Module:
    """With the classifier, as the published figure has it."""
    return nn.Sequential(AtrousPyramidPooling(2048, 256), nn.Conv2d(256, CLASSES, 1))


class Head(NamedTuple):
    """parameters and gigaflops: as published for the graph that was trained; simplified: what the
    authors' own tool says, which draws some graphs more simply."""

    build: Callable[[], nn.Module]
    parameters: float | None
    gigaflops: float
    simplified: float | None
    shapes: tuple[tuple[int, ...], ...] = (SHAPE,)


HEADS = {
    "PPM": Head(lambda: PyramidPooling(2048, 512), 23.07e6, 618.6, 618.6),
    "ASPP": Head(pooling, 15.54e6, 491.8, 491.8),
    "self-attention": Head(
        lambda: reduced(BaseObjectContext(512, 256, 512)), 10.62e6, 622.8, 618.5
    ),
    "shared self-attention": Head(
        lambda: reduced(BaseObjectContext(512, 256, 512, shared=True)), None, 614.2, None
    ),
    "OCR": Head(RegionHead, 10.63e6, 337.8, 339.9, (SHAPE, (1, CLASSES, *SHAPE[2:]))),
    "ISA": Head(
        lambda: reduced(InterlacedSelfAttention(512, 256, 512), bias=False), 11.80e6, 394.6, 386.1
    ),
}


def count(name: str) -> dict[str, float]:
    """Parameters, GFLOPs and kept MiB of a head, once they are those that were published."""
    head = HEADS[name]
    total = measure(head.build, *head.shapes)[-1]
    found = {"parameters": total.parameters, "gigaflops": total.flops / 1e9}
    for key, value in found.items():
        known = getattr(head, key)
        if known is not None and abs(value / known - 1) > 0.01:
            raise SystemExit(f"{name}: {value:g} {key}, published are {known:g}")
    return {**found, "activations_mebibytes": total.activations / 2**20}


def run(name: str, device: str, seconds: float) -> dict[str, float]:
    """Median milliseconds and peak MiB of a forward pass without gradients."""
    torch.manual_seed(0)
    module = HEADS[name].build().eval().to(device)
    inputs = [torch.randn(shape, device=device) for shape in HEADS[name].shapes]

    def forward() -> Tensor:
        with torch.no_grad():
            return module(*inputs)

    peak = _timing.peak_bytes(forward, device) / 2**20
    return {
        "milliseconds": 1e3 * _timing.median_seconds(forward, seconds),
        "peak_mebibytes": peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each time")
    parser.add_argument("--count-only", action="store_true", help="run nothing")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    options = parser.parse_args()
    print(f"{'':24}{'parameters, M':>15}{'GFLOPs':>10}{'published':>11}{'simplified':>12}", end="")
    print(f"{'ms':>12}{'peak MiB':>10}")
    for name in options.heads:
        figures, head = count(name), HEADS[name]
        line = f"{name:24}{figures['parameters'] / 1e6:15.2f}{figures['gigaflops']:10.1f}"
        print(f"{line}{head.gigaflops:11.1f}{head.simplified or float('nan'):12.1f}", end="")
        if not options.count_only:
            figures |= run(name, options.device, options.seconds)
            print(f"{figures['milliseconds']:12.1f}{figures['peak_mebibytes']:10.0f}", end="")
        print(flush=True)
        if options.record:
            threads = {"threads": torch.get_num_threads()}
            record = {**_timing.machine(options.device), **threads, "head": name, **figures}
            _timing.append(record, "complexity")


if __name__ == "__main__":
    main()
