# SPDX-License-Identifier: MIT
"""Kernels count in FlopCounterMode for what their references do there, product by product."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from openseg import _ext, ops
from openseg.ops import _backend, _flops

B, C, K, H, W = 2, 6, 3, 4, 8
PAIRS = B * H * W * K

with_kernels = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))


def count(function, tensors):
    """(forward, backward)"""
    leaves = [t.detach().requires_grad_(t.is_floating_point()) for t in tensors]
    with FlopCounterMode(display=False) as forward:
        out = function(*leaves)
    if not out.requires_grad:
        return forward.get_total_flops(), 0
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@with_kernels
@pytest.mark.parametrize("tf32", [False, True])  # an argument of the kernels
@pytest.mark.parametrize(
    ("name", "shapes", "options", "recomputed"),
    [
        ("spatial_gather", [(B, C, H, W), (B, K, H, W)], {}, 0),
        ("self_attention", [(B, C, H, W)] * 3, {}, 2 * B * (H * W) ** 2 * C),
        ("interlaced_attention", [(B, C, H, W)] * 3, {"groups": (2, 4)}, 2 * B * H * W * 4 * C),
        ("object_attention", [(B, C, H, W), (B, K, C), (B, K, 5)], {}, 2 * PAIRS * C),
        ("upsample_argmax", [(B, K, H, W)], {"size": (9, 9)}, 0),
        (
            "upsample_cross_entropy",
            [(B, K, H, W)],
            {"target": torch.zeros(B, 9, 9, dtype=torch.int64)},
            0,
        ),
    ],
)
def test_kernels_count_as_their_references(name, shapes, options, recomputed, tf32, monkeypatch):
    monkeypatch.setattr(_backend, "allows_tf32", lambda: tf32)
    tensors = [torch.randn(shape) for shape in shapes]
    known, found = (
        count(
            lambda *t, backend=backend: getattr(ops, name)(*t, **options, backend=backend), tensors
        )
        for backend in ("reference", "cpp")
    )
    assert found == (known[0], known[1] + recomputed)
    assert getattr(torch.ops.openseg, name) in flop_registry


@with_kernels
@pytest.mark.parametrize(
    "name",
    [
        "confusion_matrix",
        "inplace_abn",
        "inplace_abn_",
        "inplace_abn_backward",
        "inplace_abn_backward_sums",
        "inplace_abn_statistics",
        "upsample_cross_entropy_backward",
    ],
)
def test_kernels_without_products_count_nothing(name):
    assert flop_registry[getattr(torch.ops.openseg, name)](torch.ones(3)) == 0


def test_attention_by_hand():
    """Two products forward; five backward, of which one computes the scores again."""
    assert _flops.attention(10, 3, 4) == 2 * 10 * 3 + 2 * 10 * 4
    assert _flops.attention_backward(10, 3, 4) == 2 * 10 * (3 + 4 + 3 + 3 + 4)


@pytest.mark.parametrize(
    ("name", "options", "group"),
    [
        ("self_attention", {}, H * W),
        ("interlaced_attention", {"groups": (2, 4), "kind": "long"}, 4),
        ("interlaced_attention", {"groups": (2, 4), "kind": "short"}, 8),
    ],
)
def test_the_formula_of_attention_is_that_of_the_references(name, options, group):
    query, key, value = torch.randn(B, C, H, W), torch.randn(B, C, H, W), torch.randn(B, 5, H, W)
    pairs = B * H * W * group
    found = count(
        lambda *t: getattr(ops, name)(*t, **options, backend="reference"), [query, key, value]
    )
    recomputed = 2 * pairs * C
    assert found[0] == _flops.attention(pairs, C, 5)
    assert found[1] + recomputed == _flops.attention_backward(pairs, C, 5)
