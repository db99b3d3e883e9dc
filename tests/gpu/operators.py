# SPDX-License-Identifier: MIT
"""The operators as calls on tensors of a GPU: the same for every check of every backend."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from openseg import ops

BACKENDS = ("cuda", "triton")


@dataclass
class Call:
    """`function(*tensors, backend=…)`; those that have gradients come first."""

    function: Callable[..., Any]
    tensors: list[Tensor]
    with_gradients: int

    def run(self, backend: str, tensors: list[Tensor] | None = None) -> list[Tensor]:
        """Results and gradients of the tensors that have one."""
        tensors = self.tensors if tensors is None else tensors
        n = self.with_gradients
        leaves = [t.detach().requires_grad_() for t in tensors[:n]]
        out = self.function(*leaves, *tensors[n:], backend=backend)
        outs = list(out) if isinstance(out, tuple) else [out]
        if n == 0:
            return outs
        grad = gradient_of(outs[0])
        return [outs[0].detach(), *torch.autograd.grad(outs[0], leaves, grad)]

    def wide(self) -> list[Tensor]:
        return [t.double() if t.is_floating_point() else t for t in self.tensors]


def gradient_of(out: Tensor) -> Tensor:
    """The same numbers in every dtype, in the layout of `out`: a compiled graph asks for that."""
    return torch.empty_like(out).copy_(_numbers(out.shape, out.device))


@functools.lru_cache(maxsize=2)
def _numbers(shape: torch.Size, device: torch.device) -> Tensor:
    """Kept for the call that follows: a graph that is captured takes no numbers of a generator."""
    generator = torch.Generator(device).manual_seed(1)
    return torch.randn(shape, generator=generator, device=device).bfloat16()


def map_(batch, channels, size, dtype, layout, seed=0, spread=1.0):
    generator = torch.Generator("cuda").manual_seed(seed + channels)
    extra = 3 if layout == "sliced" else 0
    shape = (batch, channels + extra, *size)
    tensor = (spread * torch.randn(shape, generator=generator, device="cuda")).to(dtype)
    if layout != "contiguous":
        tensor = tensor.contiguous(memory_format=torch.channels_last)
    return tensor[:, extra:]


def object_attention(batch, channels, classes, size, dtype, layout):
    query = map_(batch, channels, size, dtype, layout)
    key, value = (map_(batch, channels, (classes, 1), dtype, "contiguous", s) for s in (1, 2))
    regions = [t.squeeze(3).mT for t in (key, value)]
    return Call(ops.object_attention, [query, *regions], 3)


def spatial_gather(batch, channels, classes, size, dtype, layout):
    features = map_(batch, channels, size, dtype, layout)
    logits = map_(batch, classes, size, dtype, layout, spread=3)
    return Call(ops.spatial_gather, [features, logits], 2)


def _attention(operator, batch, channels, classes, size, dtype, layout, shared):
    query, key = (map_(batch, channels, size, dtype, layout, seed) for seed in (0, 1))
    value = map_(batch, 2 * channels if channels < 256 else channels, size, dtype, layout, 2)
    if shared:
        return Call(lambda x, v, **options: operator(x, x, v, **options), [query, value], 2)
    return Call(operator, [query, key, value], 3)


def interlaced_attention(
    batch, channels, classes, size, dtype, layout, kind, shared=False, mask_pad=False
):
    if not mask_pad:
        size = tuple(-(-length // 4) * 4 for length in size)
    operator = functools.partial(
        ops.interlaced_attention, groups=(4, 2), kind=kind, mask_pad=mask_pad
    )
    return _attention(operator, batch, channels, classes, size, dtype, layout, shared)


def upsample_cross_entropy(batch, channels, classes, size, dtype, layout, **options):
    logits = map_(batch, classes, size, dtype, layout, spread=3)
    large = [8 * (length - 1) + 1 for length in size]
    generator = torch.Generator("cuda").manual_seed(5)
    target = torch.randint(0, classes, (batch, *large), generator=generator, device="cuda")
    target[:, : large[0] // 5] = 255
    weight = torch.linspace(0.5, 2, classes, device="cuda")
    function = functools.partial(ops.upsample_cross_entropy, weight=weight, **options)
    return Call(lambda x, y, **backend: function(x, y, **backend), [logits, target], 1)


def inplace_abn(batch, channels, classes, size, dtype, layout, **options):
    x = map_(batch, channels, size, dtype, layout)
    weight, bias = (map_(1, channels, (1, 1), torch.float32, "contiguous", s) for s in (1, 2))
    function = functools.partial(
        ops.inplace_abn, running_mean=None, running_var=None, training=True, **options
    )
    return Call(function, [x, 0.5 + weight.view(-1).abs(), bias.view(-1)], 3)


def inplace_abn_of_many_channels(batch, channels, classes, size, dtype, layout, **options):
    """More channels than a GPU has multiprocessors, whose pixels are neighbours."""
    return inplace_abn(batch, max(channels, 256), classes, size, dtype, "contiguous", **options)


def upsample_argmax(batch, channels, classes, size, dtype, layout):
    logits = map_(batch, classes, size, dtype, layout, spread=3)
    large = tuple(8 * (length - 1) + 1 for length in size)
    function = functools.partial(ops.upsample_argmax, size=large, confidence=True)
    return Call(function, [logits], 0)


def confusion_matrix(batch, channels, classes, size, dtype, layout):
    generator = torch.Generator("cuda").manual_seed(6)
    shape = (batch, *size)
    labels = [torch.randint(0, classes, shape, generator=generator, device="cuda") for _ in "pt"]
    labels[1][:, : size[0] // 2] = 255
    function = functools.partial(ops.confusion_matrix, num_classes=classes)
    return Call(function, [t.byte() for t in labels], 0)


# its slope does not jump at 0, on either side of which rounding may put one of a million values
SMOOTH = {"keep": "input", "activation": "elu", "activation_param": 1.0}
DIFFERENTIABLE = {
    "object_attention": object_attention,
    "spatial_gather": spatial_gather,
    "self_attention": functools.partial(_attention, ops.self_attention, shared=False),
    "self_attention of a query that is the key": functools.partial(
        _attention, ops.self_attention, shared=True
    ),
    "interlaced_attention long": functools.partial(interlaced_attention, kind="long"),
    "interlaced_attention short": functools.partial(interlaced_attention, kind="short"),
    "interlaced_attention without padding": functools.partial(
        interlaced_attention, kind="short", mask_pad=True
    ),
    "upsample_cross_entropy": upsample_cross_entropy,
    "upsample_cross_entropy smoothed": functools.partial(
        upsample_cross_entropy, label_smoothing=0.1, align_corners=False, reduction="none"
    ),
    "inplace_abn": functools.partial(inplace_abn, **SMOOTH),
    "inplace_abn of many channels": functools.partial(inplace_abn_of_many_channels, **SMOOTH),
}
# rounding may decide which pixels are hard: nothing to compare with other backends
MINED = {
    f"upsample_cross_entropy of hard pixels, {variant}": functools.partial(
        upsample_cross_entropy, ohem=ops.Ohem(0.7, 100, variant)
    )
    for variant in ("openseg", "ocnet")
}
DISCRETE = {"upsample_argmax": upsample_argmax, "confusion_matrix": confusion_matrix}
ALL = DIFFERENTIABLE | MINED | DISCRETE


def or_skip(call: Call, backend: str, tensors: list[Tensor] | None = None) -> list[Tensor]:
    """Results of a backend, or the reason why it cannot run."""
    try:
        return call.run(backend, tensors)
    except RuntimeError as error:
        if "cannot run this call" in str(error):
            pytest.skip(str(error))
        raise
