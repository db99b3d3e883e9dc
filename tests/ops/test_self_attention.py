# SPDX-License-Identifier: MIT
import math

import pytest
import torch

from openseg.ops import self_attention

# B, D, Dv, H, W
SHAPES = [(1, 1, 1, 1, 1), (2, 4, 6, 5, 3), (1, 8, 8, 7, 5), (0, 4, 4, 3, 3)]


def case(b, d, dv, h, w, dtype=torch.float64):
    generator = torch.Generator().manual_seed(b + d + dv + h + w)
    shapes = (b, d, h, w), (b, d, h, w), (b, dv, h, w)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def by_hand(query, key, value, scale):
    out = torch.zeros_like(value)
    for i in range(query.shape[0]):
        q, k, v = (x[i].flatten(1).T for x in (query, key, value))
        for n, vector in enumerate(q):
            weights = [math.exp(scale * float(vector @ other)) for other in k]
            mean = sum(w * x for w, x in zip(weights, v, strict=True)) / sum(weights)
            out[i].view(value.shape[1], -1)[:, n] = mean
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_a_loop_over_pixels(shape, scale):
    tensors = case(*shape)
    known = by_hand(*tensors, shape[1] ** -0.5 if scale is None else scale)
    torch.testing.assert_close(self_attention(*tensors, scale), known)


def test_gradients():
    tensors = [t.requires_grad_() for t in case(2, 3, 4, 2, 3)]
    assert torch.autograd.gradcheck(self_attention, tensors)


def test_gradients_when_key_is_query():
    query, _, value = (t.requires_grad_() for t in case(1, 3, 4, 2, 3))
    assert torch.autograd.gradcheck(lambda q, v: self_attention(q, q, v), (query, value))


def test_layouts_agree():
    tensors = case(2, 4, 6, 5, 3)
    last = [t.to(memory_format=torch.channels_last) for t in tensors]
    out = self_attention(*last)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, self_attention(*tensors))


def test_bfloat16_stays_near_float64():
    tensors = case(1, 16, 8, 7, 5, torch.bfloat16)
    out = self_attention(*tensors)
    known = self_attention(*[t.double() for t in tensors])
    assert out.dtype == torch.bfloat16
    # Scores of up to 4 are rounded at 2^-9 before the softmax, the values are below 4.
    torch.testing.assert_close(out.double(), known, rtol=2**-7, atol=4 * 4 * 2**-9)


def test_compiles_without_a_break():
    tensors = case(2, 4, 6, 5, 3)
    compiled = torch.compile(self_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), self_attention(*tensors))


@pytest.mark.parametrize(
    ("query", "key", "value", "text"),
    [
        ((2, 3, 4), (2, 3, 4), (2, 3, 4), r"\[B, D, H, W\]"),
        ((2, 3, 4, 4), (2, 5, 4, 4), (2, 3, 4, 4), "must agree"),
        ((2, 3, 4, 4), (2, 3, 4, 4), (2, 3, 4, 5), "must agree"),
        ((2, 3, 4, 4), (2, 3, 4, 4), (1, 3, 4, 4), "must agree"),
    ],
)
def test_shapes_that_do_not_fit(query, key, value, text):
    with pytest.raises(ValueError, match=text):
        self_attention(torch.zeros(query), torch.zeros(key), torch.zeros(value))


def test_unknown_backend():
    with pytest.raises(ValueError, match="fortran"):
        self_attention(*case(1, 1, 1, 1, 1), backend="fortran")
