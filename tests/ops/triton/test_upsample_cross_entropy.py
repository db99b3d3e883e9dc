# SPDX-License-Identifier: MIT
import pytest
import torch

from openseg.ops import Ohem, upsample_cross_entropy
from tests.ops.oracle import LAYOUTS, laid_out
from tests.ops.test_upsample_cross_entropy_cpp import case, check, loss_and_gradient

# B, K, h, w, H, W: several blocks of classes and pixels, no upsampling, downsampling
SHAPES = [(1, 5, 2, 2, 7, 13), (1, 40, 1, 2, 3, 9), (1, 3, 2, 3, 2, 3), (1, 3, 4, 3, 3, 2)]
ONE_PIXEL, FAR = (1, 2, 1, 1, 5, 1), (1, 2, 7, 1, 112, 50)
TINY = (2, 5, 1, 2, 3, 5)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("shape", [*SHAPES, ONE_PIXEL, FAR])
def test_error_budget(shape, align_corners):
    check(*case(*shape), align_corners, backend="triton")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_options(reduction, weighted):
    logits, target = case(*SHAPES[0])
    weight = torch.linspace(0.5, 2.0, logits.shape[1]) if weighted else None
    options = {"reduction": reduction, "label_smoothing": 0.1, "weight": weight}
    check(logits, target, backend="triton", **options)


@pytest.mark.parametrize("variant", ["openseg", "ocnet"])
@pytest.mark.parametrize("first", [-1, 2])
def test_ohem(variant, first):
    logits, target = case(*SHAPES[0])
    target[0, 0, 0] = first
    weight = torch.linspace(0.5, 2.0, logits.shape[1])
    check(logits, target, weight=weight, ohem=Ohem(0.01, 70, variant), backend="triton")


def test_extreme_logits():
    """Four roundings of logits up to m move a probability by a quarter of them at most."""
    logits, target = case(*SHAPES[0], spread=1e4)
    exact, exact_grad = loss_and_gradient(logits.double(), target, "reference", reduction="sum")
    loss, grad = loss_and_gradient(logits, target, "triton", reduction="sum")
    rounding = 4 * 2.0**-24 * logits.abs().max().item()
    assert abs(loss - exact) <= rounding * (target >= 0).sum()
    assert (grad - exact_grad).abs().max() <= rounding / 4 * target.numel()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_targets_of_bytes(layout):
    logits, target = case(*TINY)
    loss, grad = loss_and_gradient(logits, target, "triton")
    placed = laid_out(logits, layout).detach().requires_grad_()
    narrow = target.masked_fill(target < 0, 255).byte().mT.contiguous().mT
    mine = upsample_cross_entropy(placed, narrow, backend="triton")
    mine.backward()
    assert mine.item() == loss.item()
    assert torch.equal(placed.grad.double(), grad)
    if layout == "channels_last":
        assert placed.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_not_finite_as_torch(value):
    """Sizes of whole steps: the same pixels lie on input pixels in float32 and float64."""
    logits, target = case(1, 5, 2, 3, 5, 9)
    logits[0, 3, 1, 2] = value
    known = loss_and_gradient(logits, target, "reference", reduction="none")
    mine = loss_and_gradient(logits, target, "triton", reduction="none")
    for ours, theirs in zip(mine, known, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ohem", [None, Ohem(0.5, 10)])
def test_all_ignored_and_no_images(ohem):
    logits, target = case(*TINY)
    for images in (2, 0):
        nothing = torch.full_like(target[:images], -1)
        loss, grad = loss_and_gradient(logits[:images], nothing, "triton", ohem=ohem)
        assert loss.item() == 0
        assert grad.shape[0] == images
        assert not grad.any()


def test_label_out_of_range_is_named():
    logits, target = case(*TINY)
    target[0, 2, 3] = target[1, 0, 0] = 7
    text = rf"label 7 at element {2 * target.shape[2] + 3}, expected 0..4 or -1 .*; 2 pixels"
    with pytest.raises(ValueError, match=text):
        upsample_cross_entropy(logits, target, ignore_index=-1, backend="triton")


def test_compiles_with_its_gradients():
    def loss(logits, target):
        return upsample_cross_entropy(logits, target, ignore_index=-1, backend="triton")

    logits, target = case(*TINY)
    known = loss_and_gradient(logits, target, "triton")
    logits.requires_grad_()
    mine = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=True)(logits, target)
    mine.backward()
    assert mine.item() == known[0].item()
    assert torch.equal(logits.grad.double(), known[1])


def test_opcheck():
    logits, target = case(*TINY)
    operators, options = torch.ops.openseg_triton, (True, -1, 0.1)
    arguments = (logits, target, torch.ones(5), *options, "ocnet", 0.5, 10, False)
    torch.library.opcheck(operators.upsample_cross_entropy.default, arguments)
    lse = operators.upsample_cross_entropy(*arguments)[1]
    arguments = (laid_out(logits, "channels_last"), target, None, lse, torch.ones(()), *options)
    torch.library.opcheck(operators.upsample_cross_entropy_backward.default, arguments)
