# SPDX-License-Identifier: MIT
"""What CUDA kernels move and multiply, counted on the emulator: no GPU, and no time, is involved.

    python -m tests.emulator.costs [--dtype bfloat16] [--contiguous] [--lines 5] [OPERATOR …]

The emulated GPU has two multiprocessors, and the maps have about as many pixels for each of them
as 8 images of 97 x 97 have on the 132 of an H100. For every pass, in thousands of clocks of a
multiprocessor, the least that each of these would take alone at the rates of an H100:

    maps      what must be read and written once, at 13 bytes a clock
    memory    what is read while the L2 cache does not hold it, and what is written, likewise
    L2        what goes beyond the L1 cache, at 24 bytes a clock
    shared    wavefronts of shared memory; those for bank conflicts, at the end, are among them
    products  mma of 16 x 8 and 32 bytes of depth, one a clock
    issue     instructions of warps, four a clock, in what nvcc makes of the kernel, where it is
              installed: see instructions.py

Whatever else a kernel does, it takes as long as the greatest. The L2 cache is the share that two
multiprocessors have in 50 MB; it sees one block after the other, and loses what was used longest
ago, or what was said to be read for the last time: too little for self_attention, whose maps all
multiprocessors share. `--lines` shows where most of the traffic of memory and of L2, of the
wavefronts, of the conflicts and of the instructions comes from.
"""

import argparse
import ctypes
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.emulator import arrays, build, instructions, nvcc
from tests.emulator.attention import AttentionCall, Case
from tests.emulator.kernels import Kernels, load_address
from tests.emulator.operators import (
    confusion_matrix,
    inplace_abn,
    interlaced_attention,
    object_attention,
    self_attention,
    spatial_gather,
    upsample_argmax,
    upsample_cross_entropy,
)

MULTIPROCESSORS = 2
SIDE = 34  # of the map
ISSUED_PER_CLOCK = 4
BYTES_PER_CLOCK = {"memory": 13, "L2": 24}


@dataclass
class Line:
    """What one line of the source costs, with the functions that it is inlined into."""

    kernel: str
    where: tuple[str, ...]  # function@file:line, from the inside out
    access: str  # r, w, a (atomic) or l (read for the last time), and the bytes of a lane
    requests: int  # of warps
    wavefronts: int
    least_wavefronts: int
    l2_bytes: int
    memory_bytes: int

    @property
    def conflicts(self) -> int:
        return self.wavefronts - self.least_wavefronts


@dataclass
class Costs:
    products: int
    lines: list[Line] = field(default_factory=list)

    def add(self, new: Line) -> None:
        """Adds up what loops that were unrolled have made of one line."""
        for line in self.lines:
            if (line.kernel, line.where, line.access) == (new.kernel, new.where, new.access):
                line.requests += new.requests
                line.wavefronts += new.wavefronts
                line.least_wavefronts += new.least_wavefronts
                line.l2_bytes += new.l2_bytes
                line.memory_bytes += new.memory_bytes
                return
        self.lines.append(new)

    def total(self, what: str) -> int:
        return sum(getattr(line, what) for line in self.lines)


class Counter:
    """The library of the emulator that counts."""

    def __init__(self, architecture: str = "9.0") -> None:
        self._path = str(build.library("costs"))
        self.kernels = Kernels(self._path, architecture=architecture)
        self._report = ctypes.CDLL(self._path).emulator_costs
        self._report.restype = ctypes.c_char_p

    def count(self, run: Callable[[Kernels], Any]) -> Costs:
        self._report()  # what was counted before
        run(self.kernels)
        products, *rows = (row.split() for row in self._report().decode().splitlines())
        costs = Costs(int(products[1]))
        # What a call returns to comes after it.
        places = [(int(row[0], 16), int(row[1], 16) - 1) for row in rows]
        frames = self._frames(sorted({address for place in places for address in place}))
        for (kernel, code), (access, *counts) in zip(
            places, (row[2:] for row in rows), strict=True
        ):
            where = frames[code]
            # Copies are counted where they are issued, and arguments are not in global memory.
            if not where[0].startswith(("wait_for_copies@emulator.h", "launch@emulator.h")):
                name = frames[kernel][-1].split("@")[0]
                requests, wavefronts, least, *sectors = map(int, counts)
                moved = (32 * count for count in sectors)
                line = Line(name, where, access, requests, wavefronts, least, *moved)
                costs.add(line)
        return costs

    def _frames(self, addresses: list[int]) -> dict[int, tuple[str, ...]]:
        """The functions that an address is in, from the inside out."""
        base = load_address(self._path)
        text = "\n".join(hex(address - base) for address in addresses)
        command = ["addr2line", "-aifsC", "-e", self._path]
        output = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
        found: list[list[str]] = []
        lines = iter(output.stdout.splitlines())
        for line in lines:
            if line.startswith("0x"):
                found.append([])
            else:
                function = re.sub(r"\(anonymous namespace\)|<.*|\(.*", "", line).split("::")[-1]
                place = next(lines).split(" ")[0]
                found[-1].append(f"{function.split()[-1]}@{place}")
        return {address: tuple(frame) for address, frame in zip(addresses, found, strict=True)}


@dataclass
class Pass:
    """One call of an operator, and the bytes that it must read and write."""

    name: str
    run: Callable[[Kernels], Any]
    bytes: int


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy where torch would put it: at the start of a line of the cache."""
    line = 128
    memory = np.empty(array.nbytes + line, np.uint8)
    start = -memory.ctypes.data % line
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[:] = array
    return copy


def size_of(kind: str) -> int:
    return 2 if kind.endswith("16") else 4


def object_passes(kind: str, channels_last: bool) -> Iterator[Pass]:
    random = np.random.default_rng(0)
    pixels, channels = SIDE**2, 256
    for regions in (19, 150):
        shapes = [(1, channels, count) for count in (pixels, regions, regions, pixels)]
        maps = [random.normal(size=shape) for shape in shapes]
        call = object_attention.Attention(*maps, kind, channels_last)
        map_bytes = size_of(kind) * channels * pixels
        yield Pass(f"K = {regions}, forward", call.forward, 2 * map_bytes)
        yield Pass(f"K = {regions}, backward", call.backward, 3 * map_bytes)


def gather_passes(kind: str, channels_last: bool) -> Iterator[Pass]:
    random = np.random.default_rng(0)
    pixels, channels = SIDE**2, 512
    dtype = "float32" if kind == "tfloat32" else kind
    for regions in (19, 150):
        features, logits = (random.normal(size=(1, c, pixels)) for c in (channels, regions))
        call = spatial_gather.Gather(features, logits, kind, channels_last, dtype, channels_last)
        grad = arrays.as_map(random.normal(size=(1, channels, regions)), dtype, True)
        map_bytes = size_of(kind) * (channels + regions) * pixels
        yield Pass(f"K = {regions}, forward", call.forward, map_bytes)
        yield Pass(
            f"K = {regions}, backward",
            lambda kernels, call=call, grad=grad: call.backward(kernels, grad),
            2 * map_bytes,
        )


def attention_passes(name: str, case: Case) -> Iterator[Pass]:
    call = AttentionCall(case)
    d, dv, own_key = case.channels, case.value_channels, not case.shared
    pixel = size_of(case.kind) * case.sets.pixels.size
    yield Pass(f"{name}, forward", call.forward, pixel * (d + own_key * d + 2 * dv))
    yield Pass(f"{name}, backward", call.backward, pixel * (2 * d + 2 * own_key * d + 3 * dv))


def self_attention_passes(kind: str, channels_last: bool) -> Iterator[Pass]:
    sets = self_attention.whole_image(20, 32)  # fewer pixels: their squares count
    for shared in (True, False):
        name = "key is query" if shared else "own key"
        case = Case(1, 256, 256, sets, kind.replace("tfloat", "tf"), channels_last, shared=shared)
        yield from attention_passes(name, case)


def interlaced_attention_passes(kind: str, channels_last: bool) -> Iterator[Pass]:
    sets = {
        "sets of 169": interlaced_attention.long_sets(26, 39, 2, 3),
        "sets of 64": interlaced_attention.short_sets(32, 32, 8, 8),
    }
    for name, some in sets.items():
        case = Case(1, 256, 512, some, kind.replace("tfloat", "tf"), channels_last)
        yield from attention_passes(name, case)


def abn_passes(kind: str, channels_last: bool) -> Iterator[Pass]:
    shape = (8, 8, 97, 97) if not channels_last else (1, 512, SIDE, SIDE)
    x = np.random.default_rng(0).normal(size=shape)
    dtype = "float32" if kind == "tfloat32" else kind
    call = inplace_abn.Call(x, dtype, channels_last, "leaky_relu", 0.01)
    map_bytes = size_of(kind) * x.size
    statistics = np.stack([np.zeros(shape[1]), np.ones(shape[1]), np.full(shape[1], x.size)])
    yield Pass("leaky ReLU, forward", lambda kernels: call.forward(kernels, None), 2 * map_bytes)
    yield Pass(
        "leaky ReLU, backward",
        lambda kernels: call.whole_backward(kernels, x, x, statistics, False),
        3 * map_bytes,
    )


def cross_entropy_passes(kind: str, channels_last: bool) -> Iterator[Pass]:
    random = np.random.default_rng(0)
    logits = random.normal(size=(1, 150, 17, 65))
    dtype = "float32" if kind == "tfloat32" else kind
    call = upsample_cross_entropy.CrossEntropyCall(logits, (130, 520), True, dtype, channels_last)
    target = random.integers(0, 150, (1, 13, 52), np.uint8).repeat(10, 1).repeat(10, 2)
    target, scale = arrays.place(target), np.ones(1, np.float32)
    mined = {"openseg": True, "thresh": 0.7, "min_kept": target.size // 16}
    map_bytes, outputs = size_of(kind) * logits.size, call.lse.nbytes
    for name, ohem, count in (("forward", None, 2), ("forward, mining", mined, 3)):
        yield Pass(
            name,
            lambda kernels, ohem=ohem: call.forward(kernels, target, None, 0, ohem),
            map_bytes + target.nbytes + count * outputs,
        )
    yield Pass(
        "backward",
        lambda kernels: call.backward(kernels, scale),
        2 * map_bytes + target.nbytes + outputs,
    )


def argmax_passes(kind: str, channels_last: bool) -> Iterator[Pass]:
    logits = np.random.default_rng(0).normal(size=(1, 19, 17, 33))
    size = (136, 264)
    dtype = "float32" if kind == "tfloat32" else kind
    for name, confidence in (("labels", False), ("labels, confidence", True)):
        yield Pass(
            name,
            lambda kernels, confidence=confidence: upsample_argmax.upsample(
                kernels, logits, size, True, dtype, channels_last, confidence
            ),
            size_of(kind) * logits.size + size[0] * size[1] * (5 if confidence else 1),
        )


def confusion_passes(kind: str, channels_last: bool) -> Iterator[Pass]:
    random = np.random.default_rng(0)
    for name, run in (("objects", 50), ("noise", 1)):
        labels = random.integers(0, 19, (2, 2**15 // run)).repeat(run, 1)
        for dtype in ("uint8", "int64"):
            prediction, target = arrays.place(labels.astype(dtype))
            yield Pass(
                f"{dtype}, {name}",
                lambda kernels, maps=(prediction, target): confusion_matrix.count_labels(
                    kernels, *maps, 19, 0
                ),
                prediction.nbytes + target.nbytes,
            )


PASSES: dict[str, Callable[[str, bool], Iterator[Pass]]] = {
    "object_attention": object_passes,
    "spatial_gather": gather_passes,
    "self_attention": self_attention_passes,
    "interlaced_attention": interlaced_attention_passes,
    "inplace_abn": abn_passes,
    "upsample_cross_entropy": cross_entropy_passes,
    "upsample_argmax": argmax_passes,
    "confusion_matrix": confusion_passes,
}


def bounds(what: Pass, costs: Costs) -> dict[str, float]:
    """Clocks of a multiprocessor."""
    totals = {
        "maps": what.bytes / BYTES_PER_CLOCK["memory"],
        "memory": costs.total("memory_bytes") / BYTES_PER_CLOCK["memory"],
        "L2": costs.total("l2_bytes") / BYTES_PER_CLOCK["L2"],
        "shared": costs.total("wavefronts"),
        "products": costs.products,
        "conflicts": costs.total("conflicts"),
    }
    return {name: total / MULTIPROCESSORS for name, total in totals.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operators", nargs="*", metavar="OPERATOR", help=", ".join(PASSES))
    parser.add_argument("--dtype", default="bfloat16", choices=[*arrays.FLOATING, "tfloat32"])
    parser.add_argument("--contiguous", action="store_true")
    parser.add_argument("--lines", type=int, default=0, help="of the source, those that cost most")
    options = parser.parse_args()
    if unknown := set(options.operators) - PASSES.keys():
        parser.error(f"no operator {', '.join(sorted(unknown))}: there are {', '.join(PASSES)}")
    arrays.place = aligned
    counter = Counter()
    for operator in options.operators or PASSES:
        for what in PASSES[operator](options.dtype, not options.contiguous):
            costs = counter.count(what.run)
            issued = instructions.count(what.run) if nvcc.NVCC else {}
            clocks = bounds(what, costs)
            if issued:
                clocks["issue"] = sum(issued.values()) / ISSUED_PER_CLOCK / MULTIPROCESSORS
            columns = (f"{name} {count / 1000:7.1f}" for name, count in clocks.items())
            print(f"{operator:20} {what.name:22}", *columns, sep="  ")
            for measure in ("memory_bytes", "l2_bytes", "wavefronts", "conflicts"):
                lines = sorted(costs.lines, key=lambda line: -getattr(line, measure))
                for line in lines[: options.lines]:
                    if cost := getattr(line, measure):
                        print(f"    {measure:12} {cost:9} {line.access:3}", *line.where[:4])
            for where, cost in sorted(issued.items(), key=lambda item: -item[1])[: options.lines]:
                print(f"    {'issue':12} {cost:9}    ", *where)


if __name__ == "__main__":
    main()
