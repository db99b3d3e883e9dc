# SPDX-License-Identifier: MIT
import math

import pytest
import torch

from openseg import _ext
from openseg.ops import self_attention
from tests.ops.attention_cases import arguments, check_kernel, maps
from tests.ops.gradients import at_each_thread_count, check_budget, check_graphs, with_gradients
from tests.ops.oracle import LAYOUTS, laid_out

needs_kernels = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))

# B, D, Dv, H, W
SHAPES = [(1, 1, 1, 1, 1), (2, 4, 6, 5, 3), (1, 8, 8, 7, 5), (0, 4, 4, 3, 3)]


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
    tensors = maps(*shape)
    known = by_hand(*tensors, shape[1] ** -0.5 if scale is None else scale)
    torch.testing.assert_close(self_attention(*tensors, scale), known)


def test_gradients():
    tensors = [t.requires_grad_() for t in maps(2, 3, 4, 2, 3)]
    assert torch.autograd.gradcheck(self_attention, tensors)


def test_gradients_when_key_is_query():
    query, _, value = (t.requires_grad_() for t in maps(1, 3, 4, 2, 3))
    assert torch.autograd.gradcheck(lambda q, v: self_attention(q, q, v), (query, value))


def test_layouts_agree():
    tensors = maps(2, 4, 6, 5, 3)
    last = [t.to(memory_format=torch.channels_last) for t in tensors]
    out = self_attention(*last)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, self_attention(*tensors))


def test_bfloat16_stays_near_float64():
    tensors = maps(1, 16, 8, 7, 5, torch.bfloat16)
    out = self_attention(*tensors)
    known = self_attention(*[t.double() for t in tensors])
    assert out.dtype == torch.bfloat16
    # Scores of up to 4 are rounded at 2^-9 before the softmax, the values are below 4.
    torch.testing.assert_close(out.double(), known, rtol=2**-7, atol=4 * 4 * 2**-9)


def test_compiles_without_a_break():
    tensors = maps(2, 4, 6, 5, 3)
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
        self_attention(*maps(1, 1, 1, 1, 1), backend="fortran")


# B, D, Dv, H, W: one pixel, primes, a pair of blocks of pixels and four of them, D > Dv, no image
KERNEL_SHAPES = [
    (1, 1, 1, 1, 1),
    (2, 13, 6, 7, 5),
    (1, 20, 36, 17, 19),
    (1, 12, 9, 23, 29),
    (2, 100, 40, 1, 61),
    (0, 4, 4, 3, 3),
]
either_key = pytest.mark.parametrize("shared", [False, True], ids=["own key", "key is query"])


@needs_kernels
@either_key
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", KERNEL_SHAPES)
def test_kernel_keeps_the_error_budget(shape, layout, dtype, shared):
    check_kernel(self_attention, maps(*shape, dtype, layout), shared)


@needs_kernels
@either_key
@pytest.mark.parametrize("scale", [-0.5, 0.0])
def test_kernel_takes_any_scale(scale, shared):
    """Of 15 pixels, which fill no vector: what fills it up may not count."""
    check_kernel(self_attention, maps(1, 4, 6, 5, 3, torch.float32), shared, scale=scale)


@needs_kernels
def test_kernel_counts_many_small_weights_beside_a_large_one():
    """A random pixel's weight on itself is nearly 1, those of a thousand others are 1e-7."""
    tensors = maps(1, 256, 8, 33, 33, torch.float32)
    results = []
    for backend, dtype in (("cpp", None), ("reference", None), ("reference", torch.float64)):
        wide = [t.to(dtype) for t in tensors]
        results.append(with_gradients(*arguments(self_attention, wide, True, backend=backend)))
    check_budget(*results)


@needs_kernels
@either_key
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_returns_the_layout_of_the_query(layout, shared):
    tensors = maps(2, 12, 6, 5, 7, torch.float32, layout)
    for result in with_gradients(*arguments(self_attention, tensors, shared, backend="cpp")):
        assert result.stride() == laid_out(result, layout).stride()


@needs_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_reads_slices_of_channels_as_they_lie(layout):
    query, key, value = maps(1, 24, 6, 5, 7, torch.float32, layout)
    part, other = query[:, 8:16], key[:, 3:11]
    out = self_attention(part, other, value, backend="cpp")
    known = self_attention(part.double(), other.double(), value.double())
    torch.testing.assert_close(out.double(), known, rtol=1e-5, atol=1e-6)


@needs_kernels
@either_key
def test_kernel_is_bit_equal_under_any_number_of_threads(shared):
    function, tensors = arguments(
        self_attention, maps(2, 20, 24, 23, 29, torch.float32), shared, backend="cpp"
    )
    first, *others = at_each_thread_count(lambda: with_gradients(function, tensors))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@needs_kernels
@either_key
def test_kernel_takes_huge_scores(shared):
    query, key, value = maps(1, 4, 5, 19, 17, torch.float32)
    tensors = 1e4 * query, key, value
    function, given = arguments(self_attention, tensors, shared, backend="cpp")
    results = with_gradients(function, given)
    assert all(result.isfinite().all() for result in results)
    other = tensors[0] if shared else key
    strongest = torch.einsum("dn,dm->nm", tensors[0][0].flatten(1), other[0].flatten(1)).argmax(1)
    torch.testing.assert_close(results[0].flatten(2), value.flatten(2)[:, :, strongest])


@needs_kernels
@either_key
def test_kernel_passes_nan_and_infinity_on_as_plain_code(shared):
    for bad in (float("nan"), float("inf")):
        for at in range(3):
            tensors = maps(1, 8, 4, 18, 17, torch.float32)
            tensors[at][0, 3, 2, 5] = bad
            results = []
            for backend in ("cpp", "reference"):
                function, given = arguments(self_attention, tensors, shared, backend=backend)
                results.append(with_gradients(function, given))
            for mine, known in zip(*results, strict=True):
                assert torch.equal(mine.isnan(), known.isnan())


@needs_kernels
@either_key
def test_opcheck(shared):
    for layout in LAYOUTS:
        query, key, value = maps(2, 4, 6, 5, 3, torch.float32, layout)
        given = query, None if shared else key, value
        torch.library.opcheck(torch.ops.openseg.self_attention, (*given, 0.5))
        out, statistics = torch.ops.openseg.self_attention(*given, 0.5)
        torch.library.opcheck(
            torch.ops.openseg.self_attention_backward,
            (torch.ones_like(out), *given, out, statistics, 0.5),
        )


@needs_kernels
@pytest.mark.parametrize(("layout", "shared"), [("contiguous", False), ("channels_last", True)])
def test_kernel_compiles_with_its_gradients_and_exports(layout, shared):
    tensors = maps(2, 4, 6, 5, 3, torch.float32, layout)
    check_graphs(*arguments(self_attention, tensors, shared, backend="cpp"), dynamic=True)


@needs_kernels
@either_key
def test_kernel_under_autocast_has_gradients_of_the_cast_arguments(shared):
    operator, tensors = arguments(
        self_attention, maps(1, 16, 8, 9, 9, torch.float32), shared, backend="cpp"
    )

    def cast(*tensors):
        with torch.autocast("cpu", torch.bfloat16):
            return operator(*tensors)

    mine = with_gradients(cast, tensors)
    known = with_gradients(lambda *t: operator(*[x.bfloat16() for x in t]), tensors)
    assert [t.dtype for t in mine] == [torch.bfloat16, *[torch.float32] * len(tensors)]
    assert all(torch.equal(a, b) for a, b in zip(mine, known, strict=True))


@needs_kernels
def test_kernel_by_name_says_what_it_cannot_take():
    query, key, value = maps(1, 4, 4, 3, 3)
    with pytest.raises(RuntimeError, match="float64"):
        self_attention(query, key, value, backend="cpp")
    with pytest.raises(RuntimeError, match="one dtype"):
        self_attention(query.float(), key.bfloat16(), value.float(), backend="cpp")
