# SPDX-License-Identifier: MIT
"""`upsample_cross_entropy` through its autograd function, on the emulated kernels."""

import pytest
import torch

from openseg.ops.upsample_cross_entropy import autograd, reference
from tests.emulator import build
from tests.emulator.cases import CrossEntropyCall
from tests.emulator.kernels import Kernels
from tests.emulator.test_emulated_kernels import pytestmark as pytestmark


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.ops.openseg.upsample_cross_entropy and its backward, for contiguous CPU tensors."""
    kernels = Kernels(str(build.library("plain")))

    def call_of(logits, target, align_corners):
        size = tuple(target.shape[1:])
        values = logits.detach().double().numpy()
        return CrossEntropyCall(values, size, align_corners, "float32", False)

    def forward(logits, target, weight, align_corners, ignore_index, smoothing, per_pixel):
        assert ignore_index == 255
        call = call_of(logits, target, align_corners)
        weights = None if weight is None else weight.numpy()
        loss, sums = call.forward(kernels, target.numpy(), weights, smoothing)
        shown = torch.from_numpy(loss) if per_pixel else torch.empty(0)
        return shown, torch.from_numpy(sums), torch.from_numpy(call.log_sum_exp)

    def backward(grad_loss, logits, target, weight, log_sum_exp, align_corners, ignored, smoothing):
        call = call_of(logits, target, align_corners)
        weights = None if weight is None else weight.numpy()
        call.forward(kernels, target.numpy(), weights, smoothing)
        assert (log_sum_exp.numpy() == call.log_sum_exp).all()
        one = grad_loss.reshape(1) if grad_loss.ndim == 0 else grad_loss
        return torch.from_numpy(call.backward(kernels, one.numpy())).to(logits.dtype)

    monkeypatch.setattr(autograd, "FORWARD", forward)
    monkeypatch.setattr(autograd, "BACKWARD", backward)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_agrees_with_the_reference(reduction: str, weighted: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 3, 4, requires_grad=True)
    target = torch.randint(0, 5, (2, 13, 17))
    target[torch.rand(target.shape) < 0.3] = 255
    weight = torch.rand(5) if weighted else None
    arguments = (logits, target, True, weight, 255, 0.1, reduction)
    ours = autograd.upsample_cross_entropy(*arguments)
    theirs = reference.upsample_cross_entropy(*arguments)
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
    loss = autograd.upsample_cross_entropy(logits, target, True, None, 255, 0.0, "mean")
    assert loss.item() == 0
    assert (torch.autograd.grad(loss, logits)[0] == 0).all()
