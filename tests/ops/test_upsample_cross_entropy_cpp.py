# SPDX-License-Identifier: MIT
"""The CPU kernels of upsample_cross_entropy against float64, by the error of plain float32."""

import pytest
import torch
import torch.nn.functional as F

from openseg import _ext
from openseg.ops import Ohem, upsample_cross_entropy
from tests.ops.oracle import LAYOUTS, laid_out

pytestmark = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))

SHAPES = [  # B, K, h, w, H, W
    (1, 2, 1, 1, 1, 1),
    (2, 1, 3, 3, 9, 9),
    (2, 5, 7, 9, 53, 71),
    (1, 19, 9, 13, 65, 97),
    (2, 19, 5, 41, 20, 164),
    (1, 3, 2, 3, 130, 257),
    (1, 4, 9, 9, 9, 9),
    (1, 7, 33, 40, 12, 15),
    (1, 2, 1, 1, 5, 40),
]
MANY = [(1, 150, 5, 5, 33, 33), (1, 171, 4, 19, 31, 150), (2, 256, 4, 5, 31, 9)]


def case(b, k, h, w, height, width, spread=3.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(b + k + h + w + height + width)
    logits = spread * torch.randn(b, k, h, w, generator=generator)
    target = torch.randint(0, k, (b, height, width), generator=generator)
    ignored = torch.rand(target.shape, generator=generator) < 0.2
    ignored[:, 0, 0] = False
    return logits.to(dtype), target.masked_fill(ignored, -1)


def loss_and_gradient(logits, target, backend, align_corners=True, **options):
    logits = logits.detach().requires_grad_()
    options = {"ignore_index": -1, "align_corners": align_corners, **options}
    loss = upsample_cross_entropy(logits, target, backend=backend, **options)
    # another factor for each pixel of reduction="none"
    factor = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype).view_as(loss)
    (grad,) = torch.autograd.grad((factor * loss).sum() if loss.dim() else loss, logits)
    assert grad.dtype == logits.dtype
    return loss.detach().double(), grad.double()


def gradient_bound(logits, target, align_corners):
    """The most that the pixels near an input pixel could give, for a loss that sums pixels."""
    grid = torch.ones_like(logits[:, :1], dtype=torch.float64).requires_grad_()
    size = target.shape[1:]
    F.interpolate(grid, size, mode="bilinear", align_corners=align_corners).sum().backward()
    return grid.grad.max().item()


def check(logits, target, align_corners=True, backend="cpp", **options):
    """Within twice the error of the reference in the dtype of the logits, and a few roundings."""
    wide = {
        name: value.double() if isinstance(value, torch.Tensor) else value
        for name, value in options.items()
    }
    exact = loss_and_gradient(logits.double(), target, "reference", align_corners, **wide)
    plain = loss_and_gradient(logits, target, "reference", align_corners, **options)
    mine = loss_and_gradient(logits, target, backend, align_corners, **options)
    pixels = 1.0
    if options.get("reduction", "mean") == "mean":
        counted = (target >= 0).sum() if "ohem" not in options else options["ohem"].min_kept
        pixels = max(1.0, float(counted))
    largest = 2.0 if options.get("weight") is None else 2 * options["weight"].max().item()
    scales = (
        exact[0].abs().max().item(),
        largest * gradient_bound(logits, target, align_corners) / pixels,
    )
    for ours, theirs, known, scale in zip(mine, plain, exact, scales, strict=True):
        allowed = 2 * (theirs - known).abs().max().item() + 2.0**-22 * scale
        assert (ours - known).abs().max().item() <= allowed


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("shape", SHAPES + MANY)
@pytest.mark.parametrize("spread", [3.0, 100.0])
def test_error_budget(shape, align_corners, spread):
    """The second spread makes rows steep."""
    logits, target = case(*shape, spread=spread)
    check(logits, target, align_corners)


@pytest.mark.parametrize("spread", [3.0, 100.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_options(reduction, label_smoothing, spread):
    logits, target = case(*SHAPES[2], spread=spread)
    weight = torch.linspace(0.5, 2.0, logits.shape[1])
    options = {"reduction": reduction, "label_smoothing": label_smoothing}
    for align_corners in (True, False):
        check(logits, target, align_corners, **options)
        check(logits, target, align_corners, weight=weight, **options)


@pytest.mark.parametrize("variant", ["openseg", "ocnet"])
def test_ohem(variant):
    logits, target = case(*SHAPES[3])
    weight = torch.linspace(0.5, 2.0, logits.shape[1])
    check(logits, target, weight=weight, ohem=Ohem(0.01, 1500, variant))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [SHAPES[2], MANY[0]])
def test_half_precision(shape, dtype):
    check(*case(*shape, dtype=dtype))


@pytest.mark.parametrize("shape", [SHAPES[3], MANY[2]])
def test_extreme_logits(shape):
    """Four roundings of logits up to m move a probability by a quarter of them at most."""
    logits, target = case(*shape, spread=1e4)
    exact, exact_grad = loss_and_gradient(logits.double(), target, "reference")
    loss, grad = loss_and_gradient(logits, target, "cpp")
    rounding = 4 * 2.0**-24 * logits.abs().max().item()
    assert abs(loss - exact) <= rounding
    bound = gradient_bound(logits, target, True) / (target >= 0).sum().item()
    assert (grad - exact_grad).abs().max() <= rounding / 4 * bound


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(layout, dtype):
    logits, target = case(*SHAPES[4], dtype=dtype)
    known = loss_and_gradient(logits, target, "cpp")
    placed = laid_out(logits, layout).detach().requires_grad_()
    loss = upsample_cross_entropy(placed, target, ignore_index=-1, backend="cpp")
    loss.backward()
    assert loss.item() == known[0].item()
    assert torch.equal(placed.grad.double(), known[1])
    if layout == "channels_last":
        assert placed.grad.is_contiguous(memory_format=torch.channels_last)


def test_targets_of_bytes_and_transposed_ones():
    logits, target = case(*SHAPES[2])
    known = loss_and_gradient(logits, target, "cpp")
    turned = target.transpose(1, 2).contiguous().transpose(1, 2)
    narrow = target.masked_fill(target < 0, 255).byte()
    for other, ignore_index in ((turned, -1), (narrow, 255)):
        mine = loss_and_gradient(logits, other, "cpp", ignore_index=ignore_index)
        assert all(torch.equal(a, b) for a, b in zip(mine, known, strict=True))


def test_ignored_class_inside_the_range():
    logits, target = case(*SHAPES[2])
    check(logits, target.clamp(min=0), ignore_index=3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_as_torch(value):
    """Sizes of whole steps: the same pixels lie on input pixels in float32 and float64."""
    logits, target = case(1, 5, 9, 11, 33, 41)
    logits[0, 3, 4, 5] = value
    logits[0, 1, 0, 10] = value
    known = loss_and_gradient(logits, target, "reference", reduction="none")
    mine = loss_and_gradient(logits, target, "cpp", reduction="none")
    for ours, theirs in zip(mine, known, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["openseg", "ocnet"])
def test_ohem_keeps_nan(variant):
    logits, target = case(1, 5, 9, 11, 33, 41)
    logits[0, 3, 4, 5] = float("nan")
    for backend in ("reference", "cpp"):
        loss, _ = loss_and_gradient(logits, target, backend, ohem=Ohem(0.5, 10, variant))
        assert loss.isnan()


@pytest.mark.parametrize("ohem", [None, Ohem(0.5, 10), Ohem(0.5, 10, "ocnet")])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_ignored_and_no_images(ohem, smoothing):
    logits, target = case(*SHAPES[2])
    for backend in ("reference", "cpp"):
        for images in (2, 0):
            loss, grad = loss_and_gradient(
                logits[:images],
                torch.full_like(target[:images], -1),
                backend,
                ohem=ohem,
                label_smoothing=smoothing,
            )
            assert loss.item() == 0
            assert grad.shape[0] == images
            assert not grad.any()


@pytest.mark.parametrize("ohem", [None, Ohem(0.7, 500)])
def test_threads_and_runs_are_bit_equal(ohem):
    logits, target = case(2, 19, 17, 33, 129, 257)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            results.append(loss_and_gradient(logits, target, "cpp", ohem=ohem))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@pytest.mark.parametrize(("each", "ohem"), [(False, ""), (True, ""), (False, "ocnet")])
def test_opcheck(each, ohem):
    logits, target = case(*SHAPES[2])
    operators = torch.ops.openseg
    weight = torch.ones(logits.shape[1])
    options = (True, -1, 0.1)
    arguments = (logits, target, weight, *options, ohem, 0.5, 10, each)
    torch.library.opcheck(operators.upsample_cross_entropy.default, arguments)
    lse = operators.upsample_cross_entropy(*arguments)[1]
    scale = torch.ones(target.shape) if each else torch.ones(())
    for layout in LAYOUTS:
        torch.library.opcheck(
            operators.upsample_cross_entropy_backward.default,
            (laid_out(logits, layout), target, weight, lse, scale, *options),
        )


@pytest.mark.parametrize("ohem", [None, Ohem(0.5, 500)])
@pytest.mark.parametrize("backend", ["cpp", "reference"])
def test_compile_and_export(backend, ohem):
    class Criterion(torch.nn.Module):
        def forward(self, logits, target):
            return upsample_cross_entropy(
                logits, target, ignore_index=-1, ohem=ohem, backend=backend
            )

    logits, target = case(*SHAPES[2])
    known, known_grad = loss_and_gradient(logits, target, backend, ohem=ohem)
    logits.requires_grad_()
    compiled = torch.compile(Criterion(), fullgraph=True, backend="aot_eager", dynamic=True)
    loss = compiled(logits, target)
    loss.backward()
    torch.testing.assert_close(loss.double(), known)
    torch.testing.assert_close(logits.grad.double(), known_grad)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(
        Criterion(), (logits, target), dynamic_shapes=({0: batch}, {0: batch})
    )
    torch.testing.assert_close(exported.module()(logits, target).double(), known)


@pytest.mark.parametrize("backend", ["cpp", "reference"])
@pytest.mark.parametrize("value", [5, -7, 255])
def test_label_out_of_range_is_named(backend, value):
    logits, target = case(*SHAPES[2])
    target[0, 3, 5] = target[1, 0, 0] = value
    position = 3 * target.shape[2] + 5
    text = rf"label {value} at element {position}, expected 0..4 or -1 .*; 2 pixels"
    with pytest.raises(ValueError, match=text):
        upsample_cross_entropy(logits, target, ignore_index=-1, backend=backend)


@pytest.mark.parametrize("size", [(16, 16), (21, 60), (3, 5)])
@pytest.mark.parametrize("align_corners", [True, False])
def test_a_logit_of_minus_infinity_spreads_no_further(size, align_corners):
    """Not to logits that no pixel with a probability of NaN touches."""
    logits, target = case(1, 3, 8, 8, *size)
    target = target.clamp(max=1)
    logits[0, 2, 3, 4] = -float("inf")
    known, mine = (
        loss_and_gradient(logits, target, backend, align_corners, reduction="sum")
        for backend in ("reference", "cpp")
    )
    torch.testing.assert_close(mine, known, rtol=1e-4, atol=1e-5, equal_nan=True)
