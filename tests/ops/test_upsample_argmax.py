# SPDX-License-Identifier: MIT
"""upsample_argmax: labels against float64 by margin, confidence against float64 softmax."""

import pytest
import torch

from openseg import _ext
from openseg.ops import upsample_argmax
from tests.ops.oracle import LAYOUTS, check_labels, laid_out, upsampled

needs_kernels = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))
BACKENDS = ("reference", pytest.param("cpp", marks=needs_kernels))
SIZES = [  # (h, w) -> (H, W)
    ((1, 1), (1, 1)),
    ((1, 1), (7, 5)),
    ((7, 11), (53, 89)),
    ((9, 9), (65, 65)),
    ((65, 65), (65, 65)),
    ((31, 37), (13, 11)),
    ((3, 64), (5, 3)),
    ((2, 3), (130, 257)),
]


def logits_of(shape, seed=0, dtype=torch.float32):
    """Smooth regions with noise: cells of one candidate, of a few and of many."""
    generator = torch.Generator().manual_seed(seed)
    batch, classes, height, width = shape
    coarse = 6 * torch.randn(batch, classes, 1 + height // 8, 1 + width // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.5 * torch.randn(shape, generator=generator)).to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    """Two classes that cross between two pixels: 0, 1, 2, 3 against 2, 1.5, 1, 0.5 ... halfway."""
    logits = torch.tensor([[[[0.0, 3.0]], [[2.0, 0.5]]]])
    labels = upsample_argmax(logits, (1, 4), backend=backend)
    assert labels.tolist() == [[[1, 1, 0, 0]]]  # 0,1,2,3 against 2,1.5,1,0.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("small", "size"), SIZES)
@pytest.mark.parametrize("classes", [1, 2, 19])
def test_labels_and_confidence(backend, align_corners, small, size, classes):
    logits = logits_of((2, classes, *small))
    only = upsample_argmax(logits, size, align_corners=align_corners, backend=backend)
    labels, confidence = upsample_argmax(
        logits, size, True, align_corners=align_corners, backend=backend
    )
    assert only.dtype == labels.dtype == torch.uint8
    assert confidence.dtype == torch.float32
    # the reference rounds its coordinates to float32: it is held to float64 logits instead
    if backend == "reference":
        double = upsample_argmax(
            logits.double(), size, align_corners=align_corners, backend=backend
        )
        check_labels(double, logits, size, align_corners)
        return
    check_labels(only, logits, size, align_corners)
    check_labels(labels, logits, size, align_corners)
    expected = upsampled(logits, size, align_corners).softmax(1).amax(1)
    # values up to 30 carry 2^-24 * 30 * 4 of rounding into the exponent
    torch.testing.assert_close(confidence.double(), expected, rtol=1e-5, atol=0)


@needs_kernels
@pytest.mark.parametrize("classes", [150, 256, 257])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_classes(classes, layout):
    logits = logits_of((1, classes, 9, 11))
    labels = upsample_argmax(laid_out(logits, layout), (33, 65), backend="cpp")
    assert labels.dtype == (torch.uint8 if classes <= 256 else torch.int64)
    check_labels(labels, logits, (33, 65), True)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_dtypes(dtype, layout):
    logits = logits_of((2, 19, 17, 23), dtype=dtype)
    plain = upsample_argmax(logits.float(), (61, 97), True, backend="cpp")
    mine = upsample_argmax(laid_out(logits, layout), (61, 97), True, backend="cpp")
    assert all(torch.equal(a, b) for a, b in zip(plain, mine, strict=True))


@needs_kernels
def test_every_half_value():
    """Widening is exact for every finite float16, subnormal numbers included."""
    bits = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    bits = bits[bits.isfinite()].view(1, 1, 1, -1)
    pair = torch.cat([bits, torch.zeros_like(bits)], 1)
    labels = upsample_argmax(pair, tuple(pair.shape[2:]), backend="cpp")
    assert torch.equal(labels[0, 0], (bits < 0)[0, 0, 0].to(torch.uint8))
    _, confidence = upsample_argmax(pair, tuple(pair.shape[2:]), True, backend="cpp")
    expected = torch.sigmoid(bits.double().abs())[0, 0, 0]
    torch.testing.assert_close(confidence[0, 0].double(), expected, rtol=3e-7, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_ties_take_the_smallest_class(backend):
    logits = torch.ones(1, 5, 4, 4)
    logits[:, 0] = 0.0
    labels, confidence = upsample_argmax(logits, (9, 9), True, backend=backend)
    assert (labels == 1).all()
    expected = torch.tensor(1.0).exp() / (4 * torch.tensor(1.0).exp() + 1)
    torch.testing.assert_close(confidence, expected.expand_as(confidence))


@needs_kernels
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_as_torch(value):
    logits = logits_of((1, 5, 9, 11))
    logits[0, 3, 4, 5] = value
    logits[0, 1, 4, 6] = value
    reference = upsample_argmax(logits, (33, 41), backend="reference")
    assert torch.equal(upsample_argmax(logits, (33, 41), backend="cpp"), reference)


@needs_kernels
def test_extreme_logits():
    logits = 1e4 * logits_of((1, 19, 9, 11))
    labels, confidence = upsample_argmax(logits, (65, 65), True, backend="cpp")
    check_labels(labels, logits, (65, 65), True)
    assert ((confidence > 1 / 19 - 1e-6) & (confidence <= 1)).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batch(backend):
    labels, confidence = upsample_argmax(torch.zeros(0, 3, 4, 4), (8, 9), True, backend=backend)
    assert labels.shape == confidence.shape == (0, 8, 9)
    assert labels.dtype == torch.uint8


@needs_kernels
def test_threads_and_runs_are_bit_equal():
    logits = logits_of((2, 19, 33, 65))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            results.append(upsample_argmax(logits, (257, 513), True, backend="cpp"))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@needs_kernels
def test_opcheck():
    logits = logits_of((2, 3, 4, 5)).requires_grad_()
    for confidence in (False, True):
        torch.library.opcheck(
            torch.ops.openseg.upsample_argmax.default, (logits.detach(), (9, 7), True, confidence)
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_and_export(backend):
    class Head(torch.nn.Module):
        def forward(self, logits):
            return upsample_argmax(logits, (33, 65), True, backend=backend)

    logits = logits_of((2, 5, 9, 11))
    expected = Head()(logits)
    compiled = torch.compile(Head(), fullgraph=True, backend="aot_eager", dynamic=True)(logits)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(Head(), (logits,), dynamic_shapes=({0: batch},))
    for result in (compiled, exported.module()(logits)):
        assert torch.equal(result[0], expected[0])
        torch.testing.assert_close(result[1], expected[1])


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"logits must be .*\(1, 2, 3\)"):
        upsample_argmax(torch.zeros(1, 2, 3), (4, 4))
    with pytest.raises(ValueError, match=r"logits must be .*int64"):
        upsample_argmax(torch.zeros(1, 2, 3, 3, dtype=torch.int64), (4, 4))
    with pytest.raises(ValueError, match=r"size must be .*\(0, 4\)"):
        upsample_argmax(torch.zeros(1, 2, 3, 3), (0, 4))
    with pytest.raises(RuntimeError, match="cpp"):
        upsample_argmax(torch.zeros(1, 2, 3, 3, dtype=torch.float64), (4, 4), backend="cpp")
    with pytest.raises(ValueError, match="backend is 'cuba'"):
        upsample_argmax(torch.zeros(1, 2, 3, 3), (4, 4), backend="cuba")
