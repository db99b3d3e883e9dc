# SPDX-License-Identifier: MIT
import math

import pytest
import torch

from openseg.ops import object_attention

# B, D, H, W, K, Dv
SHAPES = [(1, 1, 1, 1, 1, 1), (2, 4, 5, 7, 3, 6), (1, 8, 13, 11, 19, 8), (0, 4, 3, 3, 2, 4)]


def case(b, d, h, w, k, dv, dtype=torch.float64):
    generator = torch.Generator().manual_seed(b + d + h + w + k + dv)
    shapes = (b, d, h, w), (b, k, d), (b, k, dv)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


def by_hand(query, key, value, scale):
    b, height, width = query.shape[0], *query.shape[2:]
    out = torch.zeros(b, value.shape[2], height, width, dtype=torch.float64)
    for i in range(b):
        for y in range(height):
            for x in range(width):
                scores = [scale * float(query[i, :, y, x] @ vector) for vector in key[i]]
                weights = [math.exp(score) for score in scores]
                for weight, vector in zip(weights, value[i], strict=True):
                    out[i, :, y, x] += weight / sum(weights) * vector
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [None, 0.3])
def test_equals_a_loop_over_pixels(shape, scale):
    tensors = case(*shape)
    known = by_hand(*tensors, shape[1] ** -0.5 if scale is None else scale)
    torch.testing.assert_close(object_attention(*tensors, scale), known)


def test_gradients():
    tensors = [t.requires_grad_() for t in case(2, 3, 3, 2, 4, 5)]
    assert torch.autograd.gradcheck(object_attention, tensors)


def test_layouts_agree():
    query, key, value = case(2, 4, 5, 7, 3, 6)
    known = object_attention(query, key, value)
    last = object_attention(query.to(memory_format=torch.channels_last), key, value)
    turned = object_attention(query, key.mT.contiguous().mT, value.mT.contiguous().mT)
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, known)
    torch.testing.assert_close(turned, known)


def test_huge_scores_do_not_overflow():
    query, key, value = case(1, 4, 3, 3, 5, 2, torch.float32)
    out = object_attention(1e4 * query, key, value)
    strongest = torch.einsum("dhw,kd->hwk", query[0], key[0]).argmax(2)
    torch.testing.assert_close(out[0].permute(1, 2, 0), value[0][strongest])


def test_bfloat16_stays_near_float64():
    tensors = case(2, 16, 9, 9, 5, 8, torch.bfloat16)
    out = object_attention(*tensors)
    known = object_attention(*[t.double() for t in tensors])
    assert out.dtype == torch.bfloat16
    # Scores of up to 4 are rounded at 2^-9 before the softmax, the values are below 4.
    torch.testing.assert_close(out.double(), known, rtol=2**-7, atol=4 * 4 * 2**-9)


def test_autocast_matches_float32():
    tensors = case(2, 16, 9, 9, 5, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = object_attention(*tensors)
    torch.testing.assert_close(
        out.float(), object_attention(*tensors), rtol=2**-7, atol=4 * 4 * 2**-8
    )


def test_compiles_without_a_break():
    tensors = case(2, 4, 5, 7, 3, 6)
    compiled = torch.compile(object_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), object_attention(*tensors))


@pytest.mark.parametrize(
    ("query", "key", "value", "text"),
    [
        ((2, 3, 4), (2, 5, 3), (2, 5, 3), r"\[B, D, H, W\]"),
        ((2, 3, 4, 4), (2, 5, 4), (2, 5, 3), "agree in B and D"),
        ((2, 3, 4, 4), (1, 5, 3), (1, 5, 3), "agree in B and D"),
        ((2, 3, 4, 4), (2, 5, 3), (2, 6, 3), "agree in B and K"),
        ((2, 3, 4, 4), (2, 0, 3), (2, 0, 3), "K is 0"),
    ],
)
def test_shapes_that_do_not_fit(query, key, value, text):
    with pytest.raises(ValueError, match=text):
        object_attention(torch.zeros(query), torch.zeros(key), torch.zeros(value))


def test_unknown_backend():
    with pytest.raises(ValueError, match="fortran"):
        object_attention(*case(1, 1, 1, 1, 1, 1), backend="fortran")
