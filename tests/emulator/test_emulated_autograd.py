# SPDX-License-Identifier: MIT
"""`upsample_cross_entropy` through its autograd function, on the emulated kernels."""

import pytest
import torch

from openseg.ops.upsample_cross_entropy import Ohem, autograd, reference
from tests.emulator import build
from tests.emulator.kernels import Kernels
from tests.emulator.operators.upsample_cross_entropy import CrossEntropyCall
from tests.emulator.test_emulated_kernels import pytestmark as pytestmark


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.ops.openseg.upsample_cross_entropy and its backward, for contiguous CPU tensors."""
    kernels = Kernels(str(build.library("plain")))

    def ran_forward(logits, target, weight, align_corners, ignore_index, smoothing, ohem=None):
        assert ignore_index == 255
        size = tuple(target.shape[1:])
        call = CrossEntropyCall(
            logits.detach().double().numpy(), size, align_corners, "float32", False
        )
        weights = None if weight is None else weight.numpy()
        return call, *call.forward(kernels, target.numpy(), weights, smoothing, ohem)

    def forward(logits, target, weight, *options):
        *problem, variant, thresh, min_kept, each = options
        ohem = {"openseg": variant == "openseg", "thresh": thresh, "min_kept": min_kept}
        call, loss, totals = ran_forward(
            logits, target, weight, *problem, ohem if variant else None
        )
        shown = torch.from_numpy(loss) if each else torch.empty(0)
        return shown, torch.from_numpy(call.lse), torch.empty(0), torch.from_numpy(totals)

    def backward(logits, target, weight, lse, scale, *problem):
        call, _, _ = ran_forward(logits, target, weight, *problem)
        kept = torch.isfinite(lse).numpy()
        assert (lse.numpy()[kept] == call.lse[kept]).all()
        call.lse[~kept] = torch.inf
        return torch.from_numpy(call.backward(kernels, scale.numpy())).to(logits.dtype)

    monkeypatch.setitem(autograd.FORWARD, "cuda", forward)
    monkeypatch.setitem(autograd.BACKWARD, "cuda", backward)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ohem", [None, Ohem(0.3, 50), Ohem(0.3, 50, "ocnet")])
def test_agrees_with_the_reference(reduction: str, weighted: bool, ohem: Ohem | None) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, requires_grad=True)
    target = torch.randint(0, 5, (2, 13, 17))
    target[torch.rand(target.shape) < 0.3] = 255
    target[1, 2, 3] = target[1, 0, 16] = 5
    weight = torch.rand(5) if weighted else None
    arguments = (logits, target, weight, True, 255, 0.1, ohem, reduction)
    ours, invalid = autograd.UpsampleCrossEntropy.apply(*arguments, "cuda")
    theirs, expected_invalid = reference.upsample_cross_entropy(*arguments)
    assert invalid.tolist() == expected_invalid.tolist() == [2, 13 * 17 + 16]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    grad = torch.rand_like(ours)
    for mine, expected in zip(
        torch.autograd.grad(ours, logits, grad),
        torch.autograd.grad(theirs, logits, grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("emulated")
def test_a_batch_that_is_ignored_has_no_loss_and_no_gradient() -> None:
    logits = torch.randn(1, 3, 2, 2, requires_grad=True)
    target = torch.full((1, 8, 8), 255, dtype=torch.uint8)
    loss, _ = autograd.UpsampleCrossEntropy.apply(
        logits, target, None, True, 255, 0.0, None, "mean", "cuda"
    )
    assert loss.item() == 0
    assert (torch.autograd.grad(loss, logits)[0] == 0).all()


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (21, 60), (3, 5)])
def test_a_logit_of_minus_infinity_spreads_no_further(
    size: tuple[int, int], align_corners: bool
) -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 3, 8, 8)
    logits[0, 2, 3, 4] = -float("inf")
    target = torch.randint(0, 2, (1, *size))
    arguments = (logits.requires_grad_(), target, None, align_corners, 255, 0.0, None, "sum")
    ours, _ = autograd.UpsampleCrossEntropy.apply(*arguments, "cuda")
    theirs, _ = reference.upsample_cross_entropy(*arguments)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    for mine, expected in zip(
        torch.autograd.grad(ours, logits), torch.autograd.grad(theirs, logits), strict=True
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
