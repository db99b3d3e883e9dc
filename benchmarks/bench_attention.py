# SPDX-License-Identifier: MIT
"""Operators of object context against PyTorch: `python benchmarks/bench_attention.py`.

The peers are the published formulation, matrix products and a softmax with the weights in memory,
in eager mode and compiled, SDPA where it applies, and FlexAttention on a GPU. Times on a CPU are
minima, for machines that are not idle; the load average is in the record.
"""

import argparse
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import _timing
import torch
import torch.nn.functional as F
from _cases import Case, describe, measure
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from openseg import ops

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-2}  # of the largest value; random inputs
SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
Operator = Callable[..., Tensor]


def published_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    pixels = query.flatten(2).permute(0, 2, 1)
    weights = F.softmax(query.shape[1] ** -0.5 * torch.matmul(pixels, key.mT), dim=-1)
    context = torch.matmul(weights, value).permute(0, 2, 1).contiguous()
    return context.view(*context.shape[:2], *query.shape[2:])


def published_gather(features: Tensor, logits: Tensor) -> Tensor:
    weights = F.softmax(logits.flatten(2), dim=2)
    return torch.matmul(weights, features.flatten(2).permute(0, 2, 1))


def published_self_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return published_attention(query, *(t.flatten(2).permute(0, 2, 1) for t in (key, value)))


def _tokens(map_: Tensor) -> Tensor:
    """[B, 1, N, C] of a map [B, C, H, W] or of regions [B, K, C]."""
    return (map_.flatten(2).permute(0, 2, 1) if map_.dim() == 4 else map_)[:, None]


def _fused(attention: Operator, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    context = attention(*(_tokens(t) for t in (query, key, value)))
    return context[:, 0].permute(0, 2, 1).unflatten(2, query.shape[2:])


def _by_backend(backend: SDPBackend, *tensors: Tensor) -> Tensor:
    with sdpa_kernel(backend):
        return _fused(F.scaled_dot_product_attention, *tensors)


def attention_peers(eager: Operator, device: str) -> dict[str, Operator]:
    peers = {"eager": eager, "compile": torch.compile(eager)}
    if device == "cpu":
        return peers | {"sdpa": functools.partial(_fused, F.scaled_dot_product_attention)}
    from torch.nn.attention.flex_attention import flex_attention

    peers |= {f"sdpa {n}": functools.partial(_by_backend, b) for n, b in SDPA.items()}
    return peers | {"flex": functools.partial(_fused, torch.compile(flex_attention))}


def _map(channels: int, size: tuple[int, int], batch: int, like: dict[str, Any]) -> Tensor:
    numbers = torch.randn(batch, channels, *size, device=like["device"])
    return numbers.to(like["dtype"]).contiguous(memory_format=like["format"])


def workload(name: str, regions: int, like: dict[str, Any]):
    """(ours, peers, tensors, multiply-adds forward, bytes of the maps forward)."""
    cuda, operator = like["device"] == "cuda", getattr(ops, name)
    batch, size = (8, (97, 97)) if cuda else (1, (128, 128))
    map_ = functools.partial(_map, batch=batch, like=like)
    pixels, item = batch * size[0] * size[1], like["dtype"].itemsize
    if name == "spatial_gather":
        tensors = [map_(512, size), map_(regions, size)]
        peers = {"eager": published_gather, "compile": torch.compile(published_gather)}
        return operator, peers, tensors, pixels * regions * 512, pixels * (regions + 512) * item
    if name == "object_attention":
        vectors = torch.randn(2, batch, regions, 256, device=like["device"]).to(like["dtype"])
        peers = attention_peers(published_attention, like["device"])
        work = 2 * pixels * regions * 256
        return operator, peers, [map_(256, size), *vectors], work, 2 * pixels * 256 * item
    if name == "self_attention":
        size = size if cuda else (64, 64)
        pixels = batch * size[0] * size[1]
        tensors = [map_(256, size) for _ in range(3)]
        peers = attention_peers(published_self_attention, like["device"])
        work = 2 * pixels * size[0] * size[1] * 256
        return operator, peers, tensors, work, 4 * pixels * 256 * item
    size = (104, 104) if cuda else size
    pixels = batch * size[0] * size[1]
    tensors = [map_(256, size), map_(256, size), map_(512, size)]
    published = functools.partial(operator, backend="reference")
    peers = {"eager": published, "compile": torch.compile(published)}
    work = pixels * (size[0] * size[1] // 64) * (256 + 512)
    return operator, peers, tensors, work, 2 * pixels * (256 + 512) * item


OPERATORS = ("object_attention", "spatial_gather", "self_attention", "interlaced_attention")
BACKWARD = {"spatial_gather": (3.0, 3.0)}  # both passes over the forward: work, bytes


def call(
    operator: Operator, tensors: list[Tensor], grad: Tensor | None
) -> Callable[[], list[Tensor]]:
    """The forward pass, or with the gradient of its result both."""
    if grad is None:

        def forward() -> list[Tensor]:
            with torch.no_grad():
                return [operator(*tensors)]

        return forward
    leaves = [t.detach().requires_grad_() for t in tensors]
    return lambda: list(torch.autograd.grad(operator(*leaves), leaves, grad))


def agrees(mine: list[Tensor], known: list[Tensor], dtype: torch.dtype) -> bool:
    pairs = zip(mine, known, strict=True)
    return all((a - b).abs().max() <= TOLERANCE[dtype] * b.abs().max() for a, b in pairs)


def cases(name: str, regions: int, dtype: str, layout: str, options) -> Iterator[Case]:
    torch.manual_seed(0)
    format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    like = {"dtype": getattr(torch, dtype), "format": format, "device": options.device}
    ours, peers, tensors, work, size = workload(name, regions, like)
    chosen = {p: f for p, f in peers.items() if p.split()[0] in options.peers}
    plain = functools.partial(ours, backend="reference")
    for grad in (None, torch.randn_like(ours(*tensors))):
        scale, sweeps = (1.0, 1.0) if grad is None else BACKWARD.get(name, (3.5, 2.5))
        mine = call(ours, tensors, grad)

        def check(mine: Any = mine, grad: Tensor | None = grad) -> bool:
            wide = None if grad is None else grad.float()
            exact = call(plain, [t.float() for t in tensors], wide)()
            return agrees([t.float() for t in mine()], exact, like["dtype"])

        few = f" K={regions}" if name in OPERATORS[:2] else ""
        yield Case(
            f"{dtype} {layout}{few} {'forward' if grad is None else 'both'}",
            mine,
            {p: call(peer, tensors, grad) for p, peer in chosen.items()},
            check,
            int(sweeps * size),
            int(scale * 2 * work),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--regions", type=int, nargs="+", default=[19, 150])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure on a CPU")
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS), choices=OPERATORS)
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
    for threads in [torch.get_num_threads()] if cuda else options.threads:
        torch.set_num_threads(threads)
        floors = _timing.copy_bandwidth(options.device), _timing.matmul_rate(options.device)
        state = {"load": os.getloadavg()[0], "copy": floors[0], "matmul": floors[1]}
        print(f"{machine['device']}, {state}")
        for name in options.operators:
            for regions in options.regions if name in OPERATORS[:2] else [0]:
                for dtype in dtypes:
                    for layout in options.layouts:
                        for case in cases(name, regions, dtype, layout, options):
                            figures = measure(name, case, options.device, floors, seconds)
                            print(describe(figures), flush=True)
                            if options.record:
                                _timing.append({**machine, **state, **figures}, options.record)


if __name__ == "__main__":
    main()
