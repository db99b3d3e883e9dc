# SPDX-License-Identifier: MIT
import math

import pytest
import torch

from openseg import _ext
from openseg.ops import object_attention
from tests.ops.gradients import (
    at_each_thread_count,
    check_budget,
    check_graphs,
    with_gradients,
)
from tests.ops.oracle import LAYOUTS, laid_out

needs_kernels = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))

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
        ((2, 3, 4, 4), (2, 0, 3), (2, 0, 3), "need K, D, Dv >= 1"),
    ],
)
def test_shapes_that_do_not_fit(query, key, value, text):
    with pytest.raises(ValueError, match=text):
        object_attention(torch.zeros(query), torch.zeros(key), torch.zeros(value))


def test_unknown_backend():
    with pytest.raises(ValueError, match="fortran"):
        object_attention(*case(1, 1, 1, 1, 1, 1), backend="fortran")


# B, D, H, W, K, Dv: one pixel, one region, primes, several chunks of pixels, many regions
KERNEL_SHAPES = [
    (1, 1, 1, 1, 1, 1),
    (1, 8, 7, 1, 2, 8),
    (2, 13, 5, 7, 3, 6),
    (1, 100, 41, 53, 19, 36),
    (3, 64, 11, 6, 150, 100),
    (1, 16, 9, 9, 256, 40),
    (2, 64, 9, 7, 19, 96),
    (1, 32, 23, 47, 11, 20),
    (0, 4, 3, 3, 2, 4),
]


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", KERNEL_SHAPES)
def test_kernel_keeps_the_error_budget(shape, layout, dtype):
    query, key, value = case(*shape, dtype)
    tensors = laid_out(query, layout), key.mT.contiguous().mT, value
    mine = with_gradients(lambda *t: object_attention(*t, backend="cpp"), tensors)
    plain = with_gradients(lambda *t: object_attention(*t, backend="reference"), tensors)
    exact = with_gradients(object_attention, [t.double() for t in tensors])
    check_budget(mine, plain, exact)


@needs_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_returns_the_layout_of_the_query(layout):
    query, key, value = case(2, 12, 5, 7, 3, 6, torch.float32)
    out, grad, *_ = with_gradients(
        lambda *t: object_attention(*t, backend="cpp"), (laid_out(query, layout), key, value)
    )
    assert out.stride() == laid_out(out, layout).stride()
    assert grad.stride() == laid_out(grad, layout).stride()


@needs_kernels
def test_kernel_reads_slices_of_channels_as_they_lie():
    query, key, value = case(1, 24, 5, 7, 3, 6, torch.float32)
    for layout in ("contiguous", "channels_last"):
        part = laid_out(query, layout)[:, 8:16]
        out = object_attention(part, key[..., 8:16], value, backend="cpp")
        known = object_attention(part.double(), key[..., 8:16].double(), value.double())
        torch.testing.assert_close(out.double(), known, rtol=1e-5, atol=1e-6)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernel_reads_pixels_of_an_odd_number_of_channels(dtype):
    """Slices of 64 channels of 65: rows of pixels start at odd elements."""
    query, key, value = case(1, 65, 9, 7, 19, 64, dtype)
    tensors = (laid_out(query, "channels_last")[:, :64], key[..., :64], value)
    mine, plain = (
        with_gradients(lambda *t, b=backend: object_attention(*t, backend=b), tensors)
        for backend in ("cpp", "reference")
    )
    exact = with_gradients(object_attention, [t.double() for t in tensors])
    check_budget(mine, plain, exact)


@needs_kernels
def test_kernel_is_bit_equal_under_any_number_of_threads():
    tensors = case(2, 20, 61, 43, 19, 24, torch.float32)
    first, *others = at_each_thread_count(
        lambda: with_gradients(lambda *t: object_attention(*t, backend="cpp"), tensors)
    )
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@needs_kernels
def test_kernel_passes_nan_on_and_keeps_it_in_its_pixel():
    query, key, value = case(1, 8, 5, 7, 3, 4, torch.float32)
    query[0, 3, 2, 5] = float("nan")
    out = object_attention(query, key, value, backend="cpp")
    assert out.isnan().sum() == 4
    assert out[0, :, 2, 5].isnan().all()


@needs_kernels
def test_opcheck():
    query, key, value = case(2, 4, 5, 7, 3, 6, torch.float32)
    for layout in LAYOUTS:
        query = laid_out(query, layout)
        torch.library.opcheck(torch.ops.openseg.object_attention, (query, key, value, 0.5))
        arguments = (torch.ones(2, 6, 5, 7), query, key, value, 0.5)
        torch.library.opcheck(torch.ops.openseg.object_attention_backward, arguments)


@needs_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_compiles_with_its_gradients_and_exports(layout):
    query, key, value = case(2, 4, 5, 7, 3, 6, torch.float32)
    check_graphs(
        lambda *tensors: object_attention(*tensors, backend="cpp"),
        (laid_out(query, layout), key, value),
        dynamic=True,
    )


@needs_kernels
def test_kernel_under_autocast_has_gradients_of_the_cast_arguments():
    tensors = case(1, 16, 9, 9, 5, 8, torch.float32)

    def cast(*tensors):
        with torch.autocast("cpu", torch.bfloat16):
            return object_attention(*tensors, backend="cpp")

    mine = with_gradients(cast, tensors)
    known = with_gradients(lambda *t: object_attention(*[x.bfloat16() for x in t]), tensors)
    assert [t.dtype for t in mine] == [torch.bfloat16, *[torch.float32] * 3]
    assert all(torch.equal(a, b) for a, b in zip(mine, known, strict=True))


@needs_kernels
def test_kernel_by_name_says_what_it_cannot_take():
    query, key, value = case(1, 4, 3, 3, 2, 4)
    with pytest.raises(RuntimeError, match="float64"):
        object_attention(query, key, value, backend="cpp")
    with pytest.raises(RuntimeError, match="one dtype"):
        object_attention(query.float(), key.bfloat16(), value.float(), backend="cpp")
