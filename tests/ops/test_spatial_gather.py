# SPDX-License-Identifier: MIT
import math

import pytest
import torch

from openseg import _ext
from openseg.ops import spatial_gather
from tests.ops.gradients import (
    at_each_thread_count,
    check_budget,
    check_graphs,
    random_gradient,
    with_gradients,
)
from tests.ops.oracle import LAYOUTS, laid_out

needs_kernels = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))

SHAPES = [(1, 1, 1, 1, 1), (2, 3, 5, 7, 4), (1, 8, 13, 11, 19), (0, 3, 4, 5, 2)]


def case(b, c, h, w, k, dtype=torch.float64):
    generator = torch.Generator().manual_seed(b + c + h + w + k)
    features = torch.randn(b, c, h, w, generator=generator, dtype=torch.float64)
    logits = 3 * torch.randn(b, k, h, w, generator=generator, dtype=torch.float64)
    return features.to(dtype), logits.to(dtype)


def by_hand(features, logits, scale):
    b, c, _, w = features.shape
    out = torch.zeros(b, logits.shape[1], c, dtype=torch.float64)
    for i in range(b):
        for k in range(logits.shape[1]):
            weights = [math.exp(scale * float(v)) for v in logits[i, k].flatten()]
            for n, weight in enumerate(weights):
                out[i, k] += weight / sum(weights) * features[i, :, n // w, n % w]
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_equals_a_loop_over_pixels(shape, scale):
    features, logits = case(*shape)
    torch.testing.assert_close(
        spatial_gather(features, logits, scale), by_hand(features, logits, scale)
    )


def test_gradients():
    features, logits = case(2, 3, 3, 2, 4)
    assert torch.autograd.gradcheck(
        lambda f, x: spatial_gather(f, x, 0.7),
        (features.requires_grad_(), logits.requires_grad_()),
    )


def test_layouts_agree():
    features, logits = case(2, 6, 5, 7, 4)
    known = spatial_gather(features, logits)
    last = spatial_gather(
        features.to(memory_format=torch.channels_last),
        logits.to(memory_format=torch.channels_last),
    )
    wide = torch.cat([features, features], dim=3)[..., :7]
    torch.testing.assert_close(last, known)
    torch.testing.assert_close(spatial_gather(wide, logits), known)


def test_huge_logits_do_not_overflow():
    features, logits = case(1, 4, 5, 3, 2, torch.float32)
    out = spatial_gather(features, 1e4 * logits)
    strongest = logits.flatten(2).argmax(2)
    torch.testing.assert_close(out[0], features.flatten(2)[0, :, strongest[0]].T)


def test_bfloat16_stays_near_float64():
    features, logits = case(2, 16, 9, 9, 5, torch.bfloat16)
    out = spatial_gather(features, logits)
    known = spatial_gather(features.double(), logits.double())
    assert out.dtype == torch.bfloat16
    # Weights and result are rounded to bfloat16 (2^-9 each), the features are below 4.
    torch.testing.assert_close(out.double(), known, rtol=2**-7, atol=4 * 2**-9)


def test_autocast_matches_float32():
    features, logits = case(1, 16, 9, 9, 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = spatial_gather(features, logits)
    torch.testing.assert_close(
        out.float(), spatial_gather(features, logits), rtol=2**-7, atol=4 * 2**-8
    )


def test_compiles_without_a_break():
    features, logits = case(2, 3, 5, 7, 4)
    compiled = torch.compile(spatial_gather, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, logits), spatial_gather(features, logits))


@pytest.mark.parametrize(
    ("features", "logits", "text"),
    [
        ((2, 3, 4), (2, 3, 4, 4), r"\[B, C, H, W\]"),
        ((2, 3, 4, 4), (2, 5, 4, 8), "agree in batch and size"),
        ((1, 3, 4, 4), (2, 5, 4, 4), "agree in batch and size"),
        ((1, 3, 0, 4), (1, 5, 0, 4), "no channels or pixels"),
    ],
)
def test_shapes_that_do_not_fit(features, logits, text):
    with pytest.raises(ValueError, match=text):
        spatial_gather(torch.zeros(features), torch.zeros(logits))


def test_unknown_backend():
    with pytest.raises(ValueError, match="fortran"):
        spatial_gather(*case(1, 1, 1, 1, 1), backend="fortran")


# B, C, H, W, K: one pixel, one region, primes, several chunks of pixels, many regions, and rows of
# whole vectors that few regions meet
KERNEL_SHAPES = [
    (1, 1, 1, 1, 1),
    (1, 8, 7, 1, 2),
    (2, 13, 5, 7, 3),
    (1, 100, 41, 53, 19),
    (3, 64, 11, 6, 150),
    (1, 40, 9, 9, 256),
    (2, 64, 9, 7, 19),
    (1, 32, 23, 47, 11),
    (0, 4, 3, 3, 2),
]


def gather(backend, scale=0.7):
    return lambda features, logits: spatial_gather(features, logits, scale, backend=backend)


def gradient_slack(grad, mine, exact):
    """What a kernel's gradients may be off besides: a list for check_budget.

    What a softmax subtracts from its gradient is <region, grad_region>, of regions as they came.
    Their error and the rounding of the product stay. Plain code sums weight · grad_weight, which at
    a weight near 1 is nearly the number that it is subtracted from, error and all.
    """
    inherited = (grad * (mine[0].double() - exact[0])).sum(2).abs()
    rounding = torch.finfo(torch.float32).eps * (grad * exact[0]).abs().sum(2)
    return [0.0, 0.0, float((inherited + rounding).amax()) if grad.numel() else 0.0]


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", KERNEL_SHAPES)
def test_kernel_keeps_the_error_budget(shape, layout, dtype):
    tensors = [laid_out(t, layout) for t in case(*shape, dtype)]
    mine = with_gradients(gather("cpp"), tensors)
    plain = with_gradients(gather("reference"), tensors)
    exact = with_gradients(gather("reference"), [t.double() for t in tensors])
    slack = gradient_slack(random_gradient(exact[0].shape), mine, exact)
    check_budget(mine, plain, exact, slack)


@needs_kernels
def test_kernel_reads_pixels_of_an_odd_number_of_channels():
    """Slices of 64 channels of 65: rows of pixels start at odd elements."""
    features, logits = case(1, 65, 9, 7, 19, torch.bfloat16)
    tensors = (laid_out(features, "channels_last")[:, :64], logits)
    mine = with_gradients(gather("cpp"), tensors)
    plain = with_gradients(gather("reference"), tensors)
    check_budget(mine, plain, with_gradients(gather("reference"), [t.double() for t in tensors]))


@needs_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_takes_float32_logits_beside_bfloat16_features(layout):
    features, logits = (laid_out(t, layout) for t in case(2, 16, 9, 11, 5, torch.float32))
    mine = with_gradients(gather("cpp"), (features.bfloat16(), logits))
    plain = with_gradients(gather("reference"), (features.bfloat16(), logits))
    exact = with_gradients(gather("reference"), (features.bfloat16().double(), logits.double()))
    check_budget(mine, plain, exact)


@needs_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_returns_gradients_in_the_layout_of_the_maps(layout):
    tensors = [laid_out(t, layout) for t in case(2, 12, 5, 7, 3, torch.float32)]
    for grad in with_gradients(gather("cpp"), tensors)[1:]:
        assert grad.stride() == laid_out(grad, layout).stride()


@needs_kernels
def test_kernel_is_bit_equal_under_any_number_of_threads():
    tensors = case(2, 20, 61, 43, 19, torch.float32)
    first, *others = at_each_thread_count(lambda: with_gradients(gather("cpp"), tensors))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@needs_kernels
def test_kernel_with_logits_of_minus_infinity_in_whole_chunks():
    features, logits = case(1, 6, 50, 50, 3, torch.float32)
    logits[:, 0, :30] = -float("inf")  # more than the first chunk of pixels
    out = spatial_gather(features, logits, backend="cpp")
    known = spatial_gather(features.double(), logits.double())
    torch.testing.assert_close(out.double(), known, rtol=1e-5, atol=1e-6)


@needs_kernels
def test_kernel_gradient_of_huge_logits():
    features, logits = case(1, 4, 5, 3, 2, torch.float32)
    mine = with_gradients(gather("cpp", 1.0), (features, 1e4 + logits))
    exact = with_gradients(gather("reference", 1.0), (features.double(), (1e4 + logits).double()))
    for ours, known in zip(mine, exact, strict=True):
        torch.testing.assert_close(ours.double(), known, rtol=1e-5, atol=1e-6)


@needs_kernels
def test_kernel_passes_nan_on_and_keeps_it_in_its_region():
    features, logits = case(1, 8, 5, 7, 3, torch.float32)
    logits[0, 1, 2, 5] = float("nan")
    out = spatial_gather(features, logits, backend="cpp")
    assert out[:, 1].isnan().all()
    assert not out[:, ::2].isnan().any()


@needs_kernels
def test_opcheck():
    features, logits = case(2, 4, 5, 7, 3, torch.float32)
    for layout in LAYOUTS:
        tensors = laid_out(features, layout), laid_out(logits, layout)
        torch.library.opcheck(torch.ops.openseg.spatial_gather, (*tensors, 0.5))
        known = torch.ops.openseg.spatial_gather(*tensors, 0.5)
        arguments = (torch.ones(2, 3, 4), *tensors, *known, 0.5)
        torch.library.opcheck(torch.ops.openseg.spatial_gather_backward, arguments)


@needs_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_compiles_with_its_gradients_and_exports(layout):
    tensors = [laid_out(t, layout) for t in case(2, 4, 5, 7, 3, torch.float32)]
    check_graphs(lambda *tensors: spatial_gather(*tensors, backend="cpp"), tensors, dynamic=True)


@needs_kernels
def test_kernel_under_autocast_has_gradients_of_the_cast_features():
    tensors = case(1, 16, 9, 9, 5, torch.float32)

    def cast(*tensors):
        with torch.autocast("cpu", torch.bfloat16):
            return gather("cpp")(*tensors)

    mine = with_gradients(cast, tensors)
    known = with_gradients(lambda f, x: gather("cpp")(f.bfloat16(), x), tensors)
    assert [t.dtype for t in mine] == [torch.bfloat16, torch.float32, torch.float32]
    assert all(torch.equal(a, b) for a, b in zip(mine, known, strict=True))


@needs_kernels
def test_kernel_by_name_says_what_it_cannot_take():
    with pytest.raises(RuntimeError, match="float64"):
        spatial_gather(*case(1, 4, 3, 3, 2), backend="cpp")
