# SPDX-License-Identifier: MIT
"""Operators of object context against PyTorch: `python benchmarks/bench_attention.py`.

Prints no speed for a wrong result. The peers are the published formulation, matrix products and a
softmax with the weights [B, K, N] in memory, in eager mode and compiled, and SDPA where it applies.
Times are minima, for machines that are not idle; the load average is in the record.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import _timing
import torch
import torch.nn.functional as F
from torch import Tensor

from openseg.ops import interlaced_attention, object_attention, self_attention, spatial_gather

SIZE = (128, 128)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}  # of the largest value; random inputs


def published_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    pixels = query.flatten(2).permute(0, 2, 1)
    weights = F.softmax(query.shape[1] ** -0.5 * torch.matmul(pixels, key.mT), dim=-1)
    context = torch.matmul(weights, value).permute(0, 2, 1).contiguous()
    return context.view(*context.shape[:2], *query.shape[2:])


def sdpa_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    pixels = query.flatten(2).permute(0, 2, 1)
    context = F.scaled_dot_product_attention(pixels[:, None], key[:, None], value[:, None])
    return context[:, 0].permute(0, 2, 1).unflatten(2, query.shape[2:])


def published_gather(features: Tensor, logits: Tensor) -> Tensor:
    weights = F.softmax(logits.flatten(2), dim=2)
    return torch.matmul(weights, features.flatten(2).permute(0, 2, 1))


def shared_attention(query: Tensor, value: Tensor) -> Tensor:
    return self_attention(query, query, value)


def published_shared_attention(query: Tensor, value: Tensor) -> Tensor:
    return published_attention(query, *(t.flatten(2).mT for t in (query, value)))


def sdpa_shared_attention(query: Tensor, value: Tensor) -> Tensor:
    return sdpa_attention(query, *(t.flatten(2).mT.contiguous() for t in (query, value)))


def both_stages(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    value = interlaced_attention(query, key, value, kind="long")
    return interlaced_attention(query, key, value, kind="short")


def grouped(attention: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Both stages on copies of the maps that have the groups in the batch, as published."""

    def stage(order: tuple[int, ...], *maps: Tensor) -> Tensor:
        cells = [t.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)) for t in maps]
        query, key, value = (t.permute(order).flatten(0, 2).contiguous() for t in cells)
        context = attention(query, key.flatten(2).mT, value.flatten(2).mT)
        turned = context.unflatten(0, [cells[2].shape[i] for i in order[:3]])
        back = [order.index(i) for i in range(6)]
        return turned.permute(back).flatten(4, 5).flatten(2, 3).contiguous()

    def both(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        value = stage((0, 3, 5, 1, 2, 4), query, key, value)
        return stage((0, 2, 4, 1, 3, 5), query, key, value)

    return both


OPERATORS: dict[str, dict[str, Callable[..., Tensor]]] = {
    "object_attention": {
        "ours": object_attention,
        "eager": published_attention,
        "sdpa": sdpa_attention,
        "compile": torch.compile(published_attention),
    },
    "spatial_gather": {
        "ours": spatial_gather,
        "eager": published_gather,
        "compile": torch.compile(published_gather),
    },
    "self_attention": {
        "ours": shared_attention,
        "eager": published_shared_attention,
        "sdpa": sdpa_shared_attention,
        "compile": torch.compile(published_shared_attention),
    },
    "interlaced_attention": {
        "ours": both_stages,
        "eager": grouped(published_attention),
        "sdpa": grouped(sdpa_attention),
        "compile": torch.compile(grouped(published_attention)),
    },
}
# keys of a pixel, where it is not the regions that are chosen
KEYS = {"self_attention": [97 * 97], "interlaced_attention": [169 + 64]}


def pixel_maps(name: str, keys: int, dtype: torch.dtype, format: torch.memory_format):
    """As `arguments`: 97 x 97 pixels, query is key; or padded to groups of 8 x 8, in two stages.

    A score of query and key that are one serves both directions.
    """
    shared = name == "self_attention"
    channels = (256, 256) if shared else (256, 256, 512)
    size = (97, 97) if shared else (104, 104)
    maps = [torch.randn(1, c, *size).to(dtype).contiguous(memory_format=format) for c in channels]
    pairs, size = size[0] * size[1] * keys, size[0] * size[1] * dtype.itemsize
    if shared:
        return maps, (3 * 256 * pairs, 3 * 256 * size), (10 * 256 * pairs, 9 * 256 * size)
    flops, maps_of_stage = 2 * pairs * (256 + 512), 2 * (256 + 512)
    backward = 2 * pairs * (3 * 256 + 2 * 512), 4 * 256 + 4 * 512
    both = flops + backward[0], 2 * size * (maps_of_stage + backward[1])
    return maps, (flops, 2 * size * maps_of_stage), both


def arguments(name: str, channels: int, regions: int, dtype: torch.dtype, layout: str):
    """(tensors, FLOPs of the forward pass, bytes of its maps and of all maps of both passes)."""
    torch.manual_seed(0)
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    if name in KEYS:
        return pixel_maps(name, regions, dtype, format)
    map_ = torch.randn(1, channels, *SIZE).to(dtype).contiguous(memory_format=format)
    pixels = SIZE[0] * SIZE[1]
    if name == "object_attention":
        key, value = torch.randn(2, 1, regions, channels).to(dtype)
        flops, size = 4 * pixels * regions * channels, pixels * channels * dtype.itemsize
        return (map_, key, value), (flops, 2 * size), (7 * flops // 2, 5 * size)
    logits = torch.randn(1, regions, *SIZE).to(dtype).contiguous(memory_format=format)
    flops, size = 2 * pixels * regions * channels, pixels * (regions + channels) * dtype.itemsize
    return (map_, logits), (flops, size), (3 * flops, 3 * size)


def fastest(call: Callable[[], Any], seconds: float) -> float:
    call()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def calls(operator: Callable[..., Tensor], tensors: tuple[Tensor, ...], backward: bool):
    if not backward:

        def forward():
            with torch.no_grad():
                return [operator(*tensors)]

        return forward
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = operator(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return lambda: torch.autograd.grad(operator(*leaves), leaves, grad)


def check(mine: list[Tensor], known: list[Tensor], dtype: torch.dtype) -> None:
    for ours, exact in zip(mine, known, strict=True):
        error = (ours.double() - exact).abs().max() / exact.abs().max()
        if error > TOLERANCE[dtype]:
            raise SystemExit(f"wrong result, relative error {error:.1e}: no times for it")


def run(name, channels, regions, dtype, layout, options, rates) -> list[dict[str, Any]]:
    records = []
    tensors, *costs = arguments(name, channels, regions, dtype, layout)
    for backward, (flops, size) in zip((False, True), costs, strict=True):
        exact = calls(OPERATORS[name]["ours"], tuple(t.double() for t in tensors), backward)()
        milliseconds, memory = {}, {}
        for peer, operator in OPERATORS[name].items():
            if peer not in options.peers and peer != "ours":
                continue
            call = calls(operator, tensors, backward)
            if peer == "ours":
                check(call(), exact, dtype)
            milliseconds[peer] = 1000 * fastest(call, options.seconds)
            memory[peer] = _timing.peak_bytes(call, "cpu") / 2**20
        matmul, copy = rates
        floor = 1000 * max(flops / matmul, size / copy)
        best = min((t for peer, t in milliseconds.items() if peer != "ours"), default=float("nan"))
        ours = milliseconds["ours"]
        title = f"{name} C={channels} K={regions} {dtype} {layout} {'both' if backward else 'fwd'}"
        print(f"{title}: " + ", ".join(f"{p} {t:.2f} ms" for p, t in milliseconds.items()))
        print(f"    {best / ours:.1f}x the best peer, {ours / floor:.2f}x the floor {floor:.2f} ms")
        print("    peak MiB: " + ", ".join(f"{p} {m:.0f}" for p, m in memory.items()), flush=True)
        records.append(
            {
                "case": title,
                "milliseconds": milliseconds,
                "floor": floor,
                "flops": flops,
                "bytes": size,
                "peak_mebibytes": memory,
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--regions", type=int, nargs="+", default=[19, 150])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS), choices=list(OPERATORS))
    parser.add_argument("--peers", nargs="*", default=["eager", "sdpa", "compile"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results")
    options = parser.parse_args()
    for threads in options.threads:
        torch.set_num_threads(threads)
        rates = _timing.matmul_rate("cpu"), _timing.copy_bandwidth("cpu")
        state = {"threads": threads, "load": os.getloadavg()[0], "matmul": rates[0]}
        print(f"{threads} threads, load {state['load']:.1f}: float32 matmul ", end="")
        print(f"{rates[0] / 1e9:.0f} GFLOP/s, copy {rates[1] / 1e9:.1f} GB/s")
        for name in options.operators:
            for regions in KEYS.get(name, options.regions):
                for dtype in options.dtypes:
                    for layout in ("contiguous", "channels_last"):
                        channels = 512 if name == "spatial_gather" else 256
                        dtype_ = getattr(torch, dtype)
                        for record in run(name, channels, regions, dtype_, layout, options, rates):
                            if options.record:
                                machine = _timing.machine("cpu")
                                _timing.append({**machine, **state, **record}, "attention")


if __name__ == "__main__":
    main()
