# SPDX-License-Identifier: MIT
"""The forward pass on NVIDIA GPUs by our kernel or by one of PyTorch's, as measured there.

PyTorch's flash and cuDNN attention return what our backward pass needs. The first call of its kind
times them, where PyTorch's own switch for that, `torch.backends.cudnn.benchmark`, is on.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_cudnn_attention, can_use_flash_attention

from openseg.ops import _backend, _flops
from openseg.ops.self_attention import autograd

_LIBRARY = torch.library.Library("openseg_fastest", "DEF")
_ALIGNMENT = 16  # bytes of the vectors that PyTorch's kernels load: nothing there checks addresses
_log = logging.getLogger("openseg")
_fastest: dict[tuple[Any, ...], str] = {}  # by kind of call

# Whether PyTorch offers it, and the operator with its arguments after the maps: it returns the
# result and the natural logarithm of Σ exp(scaled score)
_OF_TORCH: dict[str, tuple[Callable[[Any], bool], Callable[..., Any], tuple[Any, ...]]] = {
    "torch's flash": (
        can_use_flash_attention, torch.ops.aten._scaled_dot_product_flash_attention, ()
    ),
    "torch's cuDNN": (
        can_use_cudnn_attention, torch.ops.aten._scaled_dot_product_cudnn_attention, (None, True)
    ),
}  # fmt: skip


def _rows(tensor: Tensor) -> Tensor:
    """The map [B, C, H, W] as [B, 1, H · W, C]; RuntimeError where it does not lie like that."""
    batch, channels, height, width = tensor.shape
    rows = tensor.permute(0, 2, 3, 1).view(batch, 1, height * width, channels)
    steps = (step * tensor.element_size() for step in rows.stride()[:3])
    if any(place % _ALIGNMENT for place in (tensor.data_ptr(), *steps)):
        raise RuntimeError(f"pixels of strides {tensor.stride()} are not on {_ALIGNMENT} bytes")
    return rows


def _by_torch(
    query: Tensor, key: Tensor | None, value: Tensor, scale: float, name: str
) -> tuple[Tensor, Tensor]:
    """What our kernels return; RuntimeError where a map of the call would have to be copied."""
    _, attention, options = _OF_TORCH[name]
    rows = _rows(query), _rows(query if key is None else key), _rows(value)
    out, logsumexp, *_ = attention(*rows, *options, scale=scale)
    batch, _, height, width = query.shape
    # a weight, exp(score - greatest) · inverse sum, is exp(score - logsumexp) · 1
    statistics = logsumexp.new_ones((2, batch, height * width))
    statistics[0] = logsumexp.view(batch, height * width)
    out = out.contiguous()  # no copy of what they write
    return out.view(batch, height, width, -1).permute(0, 3, 1, 2), statistics


def _offered(query: Tensor, key: Tensor | None, value: Tensor, scale: float) -> list[str]:
    """PyTorch's kernels that may run this call."""
    if scale <= 0 or query.numel() == 0:  # flash takes the greatest score before it scales
        return []
    try:
        rows = _rows(query), _rows(query if key is None else key), _rows(value)
    except RuntimeError as error:
        _log.debug("self_attention: not by torch: %s", error)
        return []
    params = SDPAParams(*rows, None, 0.0, False, False)
    return [name for name, (offers, *_) in _OF_TORCH.items() if offers(params)]


def _microseconds(run: Callable[[], Any]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    run()  # the first is slower; later ones keep the GPU busy until the next is in its queue
    start.record()
    run()
    end.record()
    end.synchronize()
    return 1000 * start.elapsed_time(end)


def _measured(call: str, runs: Mapping[str, Callable[[], Any]]) -> str:
    """The name of the fastest of those that run; the first where none does."""
    times: dict[str, float] = {}
    for name, run in runs.items():
        try:
            times[name] = min(_microseconds(run) for _ in range(3))
        except RuntimeError as error:
            _log.debug("%s: not by %s: %s", call, name, error)
    fastest = min(times, key=times.__getitem__, default=next(iter(runs)))
    found = ", ".join(f"{name} {time:.0f} µs" for name, time in times.items())
    _log.info("%s: forward by %s (%s)", call, fastest, found)
    return fastest


def _may_measure() -> bool:
    return torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()


def _attention(
    backend: str,
    query: Tensor,
    key: Tensor | None,
    value: Tensor,
    scale: float,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    own = partial(autograd.FORWARD[backend], query, key, value, scale, allow_tf32)
    if not _may_measure():
        return own()
    maps = [query, value] if key is None else [query, value, key]
    places = [(t.shape, t.stride(), t.data_ptr() % _ALIGNMENT) for t in maps]
    kind = backend, query.device, query.dtype, scale > 0, *places
    if kind not in _fastest and not torch.cuda.is_current_stream_capturing():
        with torch.cuda.device_of(query):
            names = _offered(query, key, value, scale)
            others = {name: partial(_by_torch, query, key, value, scale, name) for name in names}
            call = f"self_attention of {query.dtype} {[list(t.shape) for t in maps]}"
            _fastest[kind] = _measured(call, {backend: own} | others) if names else backend
    name = _fastest.get(kind, backend)
    return own() if name == backend else _by_torch(query, key, value, scale, name)


def _registered(backend: str) -> Any:
    """`autograd.FORWARD[backend]` or what is faster: chosen when it runs, also in a graph."""
    name = f"self_attention_{backend}"
    _LIBRARY.define(name + autograd.SIGNATURE)
    _LIBRARY.impl(name, partial(_attention, backend), "CompositeExplicitAutograd")
    torch.library.register_fake(f"openseg_fastest::{name}", autograd.fake_forward, lib=_LIBRARY)
    operator = getattr(torch.ops.openseg_fastest, name).default
    _flops.register(autograd.flops_forward, operator)
    return operator


FORWARD = {backend: _registered(backend) for backend in ("cuda", "triton")}


def forward(chosen: str, backend: str, query: Tensor) -> Any:
    """The operator for the forward pass of a call that asks for `backend`.

    One that is asked for by name runs its own kernel. So does an exported graph, which may run
    without Python.
    """
    nvidia = query.device.type == "cuda" and torch.version.cuda is not None
    automatic = backend == _backend.AUTO == "auto" and not _is_exported()
    return (FORWARD if nvidia and automatic and _may_measure() else autograd.FORWARD)[chosen]


@torch.compiler.assume_constant_result
def _is_exported() -> bool:
    """Dynamo of torch 2.11 takes the call for true in every graph."""
    return torch.compiler.is_exporting()
