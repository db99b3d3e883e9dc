# SPDX-License-Identifier: MIT
"""Operators of object context against PyTorch: `python benchmarks/bench_attention.py`.

The peers are the published formulation, matrix products and a softmax with the weights [B, K, N] in
memory, in eager mode and compiled; SDPA where it applies, by each of its backends on a GPU, and
FlexAttention there. Times on a CPU are minima, for machines that are not idle; the load average is
in the record.
"""

import argparse
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import _timing
import torch
import torch.nn.functional as F
from _cases import Case, Floors, report
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from openseg.ops import interlaced_attention, object_attention, self_attention, spatial_gather

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}  # of the largest value; random inputs
Operator = Callable[..., Tensor]


def published_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    pixels = query.flatten(2).permute(0, 2, 1)
    weights = F.softmax(query.shape[1] ** -0.5 * torch.matmul(pixels, key.mT), dim=-1)
    context = torch.matmul(weights, value).permute(0, 2, 1).contiguous()
    return context.view(*context.shape[:2], *query.shape[2:])


def fused_attention(attention: Operator) -> Operator:
    """By a function of [B, heads, N, C], such as SDPA, whose fused kernels want C side by side."""

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        pixels = query.flatten(2).permute(0, 2, 1)
        context = attention(*(t.contiguous()[:, None] for t in (pixels, key, value)))
        return context[:, 0].permute(0, 2, 1).unflatten(2, query.shape[2:])

    return attend


def published_gather(features: Tensor, logits: Tensor) -> Tensor:
    weights = F.softmax(logits.flatten(2), dim=2)
    return torch.matmul(weights, features.flatten(2).permute(0, 2, 1))


def on_pixels(attention: Operator) -> Operator:
    """All pixels attend to all; the query is the key."""
    return lambda query, value: attention(
        query, *(t.flatten(2).mT.contiguous() for t in (query, value))
    )


def shared_attention(query: Tensor, value: Tensor, backend: str = "auto") -> Tensor:
    return self_attention(query, query, value, backend=backend)


def both_stages(query: Tensor, key: Tensor, value: Tensor, backend: str = "auto") -> Tensor:
    value = interlaced_attention(query, key, value, kind="long", backend=backend)
    return interlaced_attention(query, key, value, kind="short", backend=backend)


def grouped(attention: Operator) -> Operator:
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


OURS: dict[str, Operator] = {
    "object_attention": object_attention,
    "spatial_gather": spatial_gather,
    "self_attention": shared_attention,
    "interlaced_attention": both_stages,
}
AROUND: dict[str, Callable[[Operator], Operator]] = {
    "object_attention": lambda attention: attention,
    "self_attention": on_pixels,
    "interlaced_attention": grouped,
}
# keys of a pixel, where it is not the regions that are chosen
KEYS = {"self_attention": [97 * 97], "interlaced_attention": [169 + 64]}


def peers_of(name: str, device: str) -> dict[str, Operator]:
    torch.compiler.reset()  # after so many workloads it would run a function as it is
    if name == "spatial_gather":
        return {"eager": published_gather, "compile": torch.compile(published_gather)}
    around = AROUND[name]
    eager = around(published_attention)
    peers = {"eager": eager, "compile": torch.compile(eager)}
    sdpa = F.scaled_dot_product_attention
    if device == "cpu":
        return peers | {"sdpa": around(fused_attention(sdpa))}

    def by(backend: SDPBackend, *tensors: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return sdpa(*tensors)

    for kernel in ("FLASH", "CUDNN", "EFFICIENT"):
        attention = functools.partial(by, getattr(SDPBackend, f"{kernel}_ATTENTION"))
        peers[f"sdpa {kernel.lower()}"] = around(fused_attention(attention))
    from torch.nn.attention.flex_attention import flex_attention

    return peers | {"flex": around(fused_attention(torch.compile(flex_attention)))}


def pixel_maps(name: str, keys: int, dtype: torch.dtype, map_: Callable[..., Tensor], images: int):
    """As `arguments`: 97 x 97 pixels, query is key; or padded to groups of 8 x 8, in two stages.

    A score of query and key that are one serves both directions.
    """
    shared = name == "self_attention"
    channels = (256, 256) if shared else (256, 256, 512)
    size = (97, 97) if shared else (104, 104)
    maps = [map_(c, size) for c in channels]
    pixels = images * size[0] * size[1]
    pairs, size = pixels * keys, pixels * dtype.itemsize
    if shared:
        return maps, (3 * 256 * pairs, 3 * 256 * size), (10 * 256 * pairs, 9 * 256 * size)
    flops, maps_of_stage = 2 * pairs * (256 + 512), 2 * (256 + 512)
    backward = 2 * pairs * (3 * 256 + 2 * 512), 4 * 256 + 4 * 512
    both = flops + backward[0], 2 * size * (maps_of_stage + backward[1])
    return maps, (flops, 2 * size * maps_of_stage), both


def arguments(name: str, regions: int, dtype: torch.dtype, layout: str, device: str):
    """(tensors, FLOPs of the forward pass, bytes of its maps and of all maps of both passes)."""
    torch.manual_seed(0)
    images, size = (8, (97, 97)) if device == "cuda" else (1, (128, 128))
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format

    def map_(channels: int, size: tuple[int, int]) -> Tensor:
        numbers = torch.randn(images, channels, *size, device=device)
        return numbers.to(dtype).contiguous(memory_format=format)

    if name in KEYS:
        return pixel_maps(name, regions, dtype, map_, images)
    pixels = images * size[0] * size[1]
    if name == "object_attention":
        key, value = torch.randn(2, images, regions, 256, device=device).to(dtype)
        flops, size_ = 4 * pixels * regions * 256, pixels * 256 * dtype.itemsize
        return (map_(256, size), key, value), (flops, 2 * size_), (7 * flops // 2, 5 * size_)
    flops, size_ = 2 * pixels * regions * 512, pixels * (regions + 512) * dtype.itemsize
    return (map_(512, size), map_(regions, size)), (flops, size_), (3 * flops, 3 * size_)


def call(operator: Operator, tensors: Any, grad: Tensor | None) -> Callable[[], list[Tensor]]:
    """The forward pass, or with the gradient of its result both."""
    if grad is None:

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [operator(*tensors)]

        return forward
    leaves = [t.detach().requires_grad_() for t in tensors]
    return lambda: list(torch.autograd.grad(operator(*leaves), leaves, grad))


def agrees(
    mine: list[Tensor], plain: list[Tensor], exact: list[Tensor], dtype: torch.dtype
) -> bool:
    """Within the tolerance, or where plain torch is not in that dtype, within four times its error.

    The gradient of a query that is the key nearly cancels for random numbers.
    """
    for ours, theirs, known in zip(mine, plain, exact, strict=True):
        errors = [(t.double() - known).abs().max() for t in (ours, theirs)]
        if not errors[0] <= max(TOLERANCE[dtype] * known.abs().max(), 4 * errors[1]):
            return False  # also where it is NaN
    return True


def cases(name: str, regions: int, dtype_name: str, layout: str, options) -> Iterator[Case]:
    dtype = getattr(torch, dtype_name)
    tensors, *costs = arguments(name, regions, dtype, layout, options.device)
    peers = peers_of(name, options.device).items()
    chosen = {peer: f for peer, f in peers if peer.split()[0] in options.peers}
    grad = torch.randn_like(OURS[name](*tensors))
    for given, (flops, size) in zip((None, grad), costs, strict=True):
        mine = call(OURS[name], tensors, given)

        def check(mine: Any = mine, given: Tensor | None = given) -> bool:
            plain = functools.partial(OURS[name], backend="reference")
            wide = None if given is None else given.double()
            exact = call(plain, [t.double() for t in tensors], wide)()
            return agrees(mine(), call(plain, tensors, given)(), exact, dtype)

        yield Case(
            f"K={regions} {dtype_name} {layout} {'forward' if given is None else 'both'}",
            mine,
            {peer: call(operator, tensors, given) for peer, operator in chosen.items()},
            check,
            size,
            flops,
            dtype,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--regions", type=int, nargs="+", default=[19, 150])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure on a CPU")
    parser.add_argument("--only", nargs="+", default=list(OURS), choices=list(OURS))
    parser.add_argument("--peers", nargs="*", default=["eager", "sdpa", "compile", "flex"])
    parser.add_argument("--dtypes", nargs="+", default=None)
    parser.add_argument("--layouts", nargs="+", default=["contiguous", "channels_last"])
    parser.add_argument(
        "--record", nargs="?", const="attention", help="append to benchmarks/results/RECORD.jsonl"
    )
    options = parser.parse_args()
    cuda = options.device == "cuda"
    dtypes = options.dtypes or (["bfloat16"] if cuda else ["float32", "bfloat16"])
    seconds = _timing.cuda_seconds if cuda else functools.partial(_timing.fastest, options.seconds)
    machine = _timing.machine(options.device)
    failures = 0
    for threads in [torch.get_num_threads()] if cuda else options.threads:
        torch.set_num_threads(threads)
        floors = Floors.measured(options.device, [getattr(torch, name) for name in dtypes])
        state = {"load": os.getloadavg()[0], **floors.record()}
        print(f"{machine['device']}, load {state['load']:.1f}, {threads} threads: {floors}")

        def keep(figures: dict[str, Any], state: dict[str, Any] = state) -> None:
            if options.record:
                _timing.append({**machine, **state, **figures}, options.record)

        for name in options.only:
            for regions in KEYS.get(name, options.regions):
                for dtype in dtypes:
                    for layout in options.layouts:
                        workloads = cases(name, regions, dtype, layout, options)
                        failures += report(name, workloads, options.device, floors, seconds, keep)
    if failures:
        raise SystemExit(f"{failures} cases fail")


if __name__ == "__main__":
    main()
