# SPDX-License-Identifier: MIT
"""The four attention operators through their autograd functions, on the emulated kernels."""

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from openseg import ops
from openseg.ops.interlaced_attention import autograd as interlaced
from openseg.ops.interlaced_attention.groups import spans
from openseg.ops.object_attention import autograd as regions_of_pixels
from openseg.ops.self_attention import autograd as whole
from openseg.ops.spatial_gather import autograd as gather
from tests.emulator import arrays, build
from tests.emulator.kernels import Kernels
from tests.emulator.test_emulated_kernels import pytestmark as pytestmark
from tests.ops.gradients import with_gradients

TF32 = ctypes.c_bool(False)
Fields = dict[str, Any]


def field(tensor: Tensor, first: int = 0, pixels: int | None = None) -> Fields:
    """A contiguous map [B, C, H, W], or some of its pixels."""
    flat = tensor.detach().flatten(2).numpy()
    return arrays.map_of(flat[:, :, first:][:, :, :pixels], "float32")


def regions_field(tensor: Tensor) -> Fields:
    return arrays.map_of(tensor.detach().numpy().transpose(0, 2, 1), "float32")


def unwritten(*shape: int) -> Tensor:
    return torch.full(shape, float("nan"))


def whole_map(size: tuple[int, int]) -> Iterator[tuple[int, Fields]]:
    return groups_of((1, size[0] * size[1]), (1, 1), "long")


def groups_of(
    size: tuple[int, int], groups: tuple[int, int], kind: str
) -> Iterator[tuple[int, Fields]]:
    """The first pixel and the fields of PixelSets for the groups of each size."""
    for rows in spans(size[0], groups[0], kind):
        for columns in spans(size[1], groups[1], kind):
            yield (
                rows.first * size[1] + columns.first,
                {
                    "down": rows.sets,
                    "across": columns.sets,
                    "lines": rows.members,
                    "columns": columns.members,
                    "stride_down": rows.set_step * size[1],
                    "stride_across": columns.set_step,
                    "stride_line": rows.step * size[1],
                    "stride_column": columns.step,
                },
            )


class Emulated:
    """The operators of the binary, for contiguous float32 tensors of a CPU."""

    def __init__(self) -> None:
        self.kernels = Kernels(str(build.library("plain")))

    def object_attention(self, query, key, value, scale, allow_tf32):
        out = unwritten(query.shape[0], value.shape[2], *query.shape[2:])
        fields = self._object_fields(query, key, value, out, scale)
        self.kernels.call("object_attention", "object_attention", TF32, ObjectAttention=fields)
        return out

    def object_attention_backward(self, grad, query, key, value, scale, allow_tf32):
        grads = [unwritten(*t.shape) for t in (query, key, value)]
        fields = {
            "forward": self._object_fields(query, key, value, grad, scale),
            "grad_query": field(grads[0]),
            "grad_key": regions_field(grads[1]),
            "grad_value": regions_field(grads[2]),
        }
        self.kernels.call(
            "object_attention_backward", "object_attention", TF32, ObjectAttentionBackward=fields
        )
        return grads

    def _object_fields(self, query, key, value, out, scale) -> Fields:
        regions = {"key": regions_field(key), "value": regions_field(value)}
        return {"query": field(query), **regions, "out": field(out), "scale": scale}

    def spatial_gather(self, features, logits, scale, allow_tf32):
        batch, count = logits.shape[:2]
        out, statistics = unwritten(batch, count, features.shape[1]), unwritten(batch, 2, count)
        fields = self._gather_fields(features, logits, out, statistics, scale)
        self.kernels.call("spatial_gather", "spatial_gather", TF32, SpatialGather=fields)
        return out, statistics

    def spatial_gather_backward(self, grad, features, logits, out, statistics, scale, allow_tf32):
        grads = unwritten(*features.shape), unwritten(*logits.shape)
        fields = {
            "forward": self._gather_fields(features, logits, out, statistics, scale),
            "grad_out": regions_field(grad),
            "grad_features": field(grads[0]),
            "grad_logits": field(grads[1]),
        }
        self.kernels.call(
            "spatial_gather_backward", "spatial_gather", TF32, SpatialGatherBackward=fields
        )
        return grads

    def _gather_fields(self, features, logits, out, statistics, scale) -> Fields:
        maps = {"features": field(features), "logits": field(logits), "out": regions_field(out)}
        return {**maps, "scale": scale, "statistics": statistics.numpy()}

    def self_attention(self, query, key, value, scale, allow_tf32):
        return self._attention(query, key, value, scale, whole_map(query.shape[2:]))

    def self_attention_backward(self, grad, query, key, value, *known):
        *known, scale, _ = known
        return self._backward(grad, query, key, value, known, scale, whole_map(query.shape[2:]))

    def interlaced_attention(self, query, key, value, scale, groups, kind, allow_tf32):
        parts = groups_of(query.shape[2:], groups, kind)
        return self._attention(query, key, value, scale, parts)

    def interlaced_attention_backward(self, grad, query, key, value, *known):
        *known, scale, groups, kind, _ = known
        parts = groups_of(query.shape[2:], groups, kind)
        return self._backward(grad, query, key, value, known, scale, parts)

    def _attention(self, query, key, value, scale, parts):
        out = unwritten(query.shape[0], *value.shape[1:])
        statistics = unwritten(2, query.shape[0], query[0, 0].numel())
        for _, fields in self._calls(query, key, value, (out, statistics), scale, parts):
            self.kernels.call("attention", "common", TF32, Attention=fields)
        return out, statistics

    def _backward(self, grad, query, key, value, known, scale, parts):
        grads = [unwritten(*t.shape) for t in (query, query, value)]
        for place, fields in self._calls(query, key, value, known, scale, parts):
            names = "grad_query", "grad_key", "grad_value"
            call = {name: field(t, *place) for name, t in zip(names, grads, strict=True)}
            call |= {"forward": fields, "grad_out": field(grad, *place)}
            self.kernels.call("attention_backward", "common", TF32, AttentionBackward=call)
        return grads

    def _calls(self, query, key, value, known, scale, parts):
        out, statistics = known
        covered = 0
        for first, sets in parts:
            pixels = sets["down"] * sets["across"] * sets["lines"] * sets["columns"]
            place = first, pixels
            yield (
                place,
                {
                    "query": field(query, *place),
                    "key": field(query if key is None else key, *place),
                    "value": field(value, *place),
                    "shared": key is None,
                    "scale": scale,
                    "sets": sets,
                    "out": field(out, *place),
                    "statistics": statistics.view(-1)[2 * len(query) * covered :].numpy(),
                },
            )
            covered += pixels


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    operators = Emulated()
    modules = {
        "object_attention": regions_of_pixels,
        "spatial_gather": gather,
        "self_attention": whole,
        "interlaced_attention": interlaced,
    }
    for name, module in modules.items():
        monkeypatch.setitem(module.FORWARD, "cuda", getattr(operators, name))
        monkeypatch.setitem(module.BACKWARD, "cuda", getattr(operators, f"{name}_backward"))


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def agree(ours: Any, known: Any, given: list[Tensor]) -> None:
    mine = with_gradients(ours, given)
    exact = with_gradients(known, [t.double() for t in given])
    for found, expected in zip(mine, exact, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_object_attention() -> None:
    agree(
        lambda *t: regions_of_pixels.ObjectAttention.apply(*t, 0.4, "cuda"),
        lambda *t: ops.object_attention(*t, scale=0.4, backend="reference"),
        tensors((2, 12, 5, 7), (2, 19, 12), (2, 19, 6)),
    )


def test_spatial_gather() -> None:
    agree(
        lambda *t: gather.SpatialGather.apply(*t, 0.7, "cuda"),
        lambda *t: ops.spatial_gather(*t, scale=0.7, backend="reference"),
        tensors((2, 12, 5, 7), (2, 19, 5, 7)),
    )


either_key = pytest.mark.parametrize("shared", [False, True], ids=["own key", "key is query"])


def attend(module: Any, *tensors: Tensor | None, options: tuple) -> Tensor:
    kernels = module.FORWARD["cuda"], module.BACKWARD["cuda"]
    return whole.PixelAttention.apply(*tensors, kernels, options)


def agree_on_itself(shared: bool, ours: Any, known: Any) -> None:
    """Both are called with query, key and value; ours without a key where it is the query."""
    if shared:
        agree(
            lambda q, v: ours(q, None, v),
            lambda q, v: known(q, q, v),
            tensors((2, 12, 5, 7), (2, 6, 5, 7)),
        )
    else:
        agree(ours, known, tensors((2, 12, 5, 7), (2, 12, 5, 7), (2, 6, 5, 7)))


@either_key
def test_self_attention(shared: bool) -> None:
    agree_on_itself(
        shared,
        lambda *t: attend(whole, *t, options=(0.4, False)),
        lambda *t: ops.self_attention(*t, scale=0.4, backend="reference"),
    )


@either_key
@pytest.mark.parametrize("kind", ["long", "short"])
def test_groups_that_do_not_divide_the_map(kind: str, shared: bool) -> None:
    options: Any = {"groups": (2, 3), "kind": kind, "mask_pad": True, "backend": "reference"}
    agree_on_itself(
        shared,
        lambda *t: attend(interlaced, *t, options=(0.4, [2, 3], kind, False)),
        lambda *t: ops.interlaced_attention(*t, scale=0.4, **options),
    )
