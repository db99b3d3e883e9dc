# SPDX-License-Identifier: MIT
"""A workload with its peers, how it is measured, and the record that it leaves.

The result is checked first: there is no speed for a wrong one. A peer that refuses a workload and a
case that fails are recorded with the reason.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import _timing
import torch

Seconds = Callable[[Callable[[], Any]], float]


class WrongResultError(RuntimeError):
    """There is nothing to time."""


@dataclass
class Floors:
    """What the machine does a second, with the threads of the run."""

    bandwidth: float  # bytes of a copy, read and written
    products: dict[torch.dtype, float]  # FLOPs

    @classmethod
    def measured(cls, device: str, dtypes: Iterable[torch.dtype]) -> "Floors":
        rates = {dtype: _timing.product_rate(device, dtype) for dtype in dtypes}
        return cls(_timing.copy_bandwidth(device), rates)

    def record(self) -> dict[str, Any]:
        rates = {str(dtype).removeprefix("torch."): rate for dtype, rate in self.products.items()}
        return {"copy": self.bandwidth, "products": rates}

    def seconds(self, case: "Case") -> float:
        products = case.flops / self.products[case.dtype] if case.flops else 0.0
        return max(case.bytes / self.bandwidth, products)

    def __str__(self) -> str:
        rates = ", ".join(
            f"{rate / 1e9:.0f} GFLOP/s {dtype}" for dtype, rate in self.products.items()
        )
        return f"copy {self.bandwidth / 1e9:.1f} GB/s, products {rates}"


@dataclass
class Case:
    """One workload: ours, its peers by name, and what any implementation must move and compute."""

    name: str
    ours: Callable[[], Any]
    peers: dict[str, Callable[[], Any]]
    check: Callable[[], bool]
    bytes: int  # inputs read once, results written once
    flops: int = 0
    dtype: torch.dtype = torch.float32  # of the FLOPs


def measure(
    operator: str, case: Case, device: str, floors: Floors, seconds: Seconds
) -> dict[str, Any]:
    """Figures of one case in seconds and bytes.

    On a GPU the times are those of a cold cache; "modes" has ours and the peers warm and in a CUDA
    graph too.
    """
    if not case.check():
        raise WrongResultError("wrong result, not timed")
    figures: dict[str, Any] = {
        "operator": operator,
        "case": case.name,
        "threads": torch.get_num_threads(),
        "ours": seconds(case.ours),
        "peers": {},
        "refused": {},
        "bytes": case.bytes,
        "flops": case.flops,
        "floor": floors.seconds(case),
        "peak": _timing.peak_bytes(case.ours, device),
        "peer_peaks": {},
    }
    for name, peer in case.peers.items():
        try:
            figures["peers"][name] = seconds(peer)
            figures["peer_peaks"][name] = _timing.peak_bytes(peer, device)
        except Exception as error:  # compilers have kinds of their own
            figures["refused"][name] = first_line(error)
    if device == "cuda":
        runs = {"ours": case.ours, **{name: case.peers[name] for name in figures["peers"]}}
        figures["modes"] = {name: {} for name in runs}
        for mode, times in _timing.CUDA_MODES.items():  # a capture that fails harms what follows
            for name, run in runs.items():
                try:
                    figures["modes"][name][mode] = times(run)
                except Exception as error:
                    figures["refused"][f"{name}, {mode}"] = first_line(error)
    return figures


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def report(
    operator: str,
    cases: Iterable[Case],
    device: str,
    floors: Floors,
    seconds: Seconds,
    keep: Callable[[dict[str, Any]], None],
) -> int:
    """Measures, prints and keeps each case, also that it failed; the number of those."""
    failures, name = 0, "the first case"
    remaining = iter(cases)
    while True:
        try:
            case = next(remaining, None)  # runs kernels too, and is over once it fails
            if case is None:
                return failures
            name = case.name
            figures = measure(operator, case, device, floors, seconds)
            print(describe(figures), flush=True)
        except Exception as error:  # Triton has kinds of its own too
            failures += 1
            figures = {"operator": operator, "case": name, "failed": first_line(error)}
            print(f"{operator} / {name} fails: {figures['failed']}", flush=True)
        keep(figures)
        name = f"what follows {name}"


def describe(figures: dict[str, Any]) -> str:
    """One row: milliseconds, share of the floor, rates, times faster than each peer, megabytes."""
    ours = figures["ours"]
    peers = ", ".join(
        f"{name} {seconds * 1e3:.3g} ms ({seconds / ours:.1f}x, "
        f"{figures['peer_peaks'].get(name, 0) / 1e6:.0f} MB)"
        for name, seconds in figures["peers"].items()
    )
    modes = ", ".join(
        f"{mode} {seconds * 1e3:.3g} ms"
        for mode, seconds in figures.get("modes", {}).get("ours", {}).items()
    )
    refused = "".join(f"\n    {name} refuses: {why}" for name, why in figures["refused"].items())
    return (
        f"{figures['operator']:17} {figures['case']:24} {figures['threads']} thr "
        f"{ours * 1e3:8.3g} ms ({100 * figures['floor'] / ours:.0f} % of floor, "
        f"{figures['bytes'] / ours / 1e9:.0f} GB/s, {figures['flops'] / ours / 1e12:.2g} TFLOP/s), "
        f"{figures['peak'] / 1e6:.0f} MB | {peers}" + (f" | {modes}" if modes else "") + refused
    )
