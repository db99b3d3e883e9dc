# SPDX-License-Identifier: MIT
"""What every loss keeps to: (logits, target) -> scalar, ignored pixels, gradients, dtypes."""

from types import SimpleNamespace

import pytest
import torch

from openseg.losses import (
    RMI,
    CrossEntropy,
    Dice,
    EdgeCrossEntropy,
    Focal,
    Lovasz,
    SegFixLoss,
    SegmentationLoss,
    WeightedSum,
)
from openseg.ops import Ohem

WEIGHTS = [0.5, 2.0, 1.0]


class _SegFix(torch.nn.Module):
    """SegFixLoss of one tensor of logits: two channels are the mask, eight the direction."""

    def forward(self, logits, target):
        output = SimpleNamespace(main=logits[:, :2], aux={"direction": logits[:, 2:]})
        offsets = torch.arange(target.numel()).view_as(target)
        return SegFixLoss()(output, torch.stack([target, offsets % 9, offsets % 181], 1))["loss"]


class _CE2P(torch.nn.Module):
    """The losses of a CE2P network, each on its own channels of one tensor of logits."""

    def forward(self, logits, target):
        aux = {"seg": logits[:, 3:6], "edge": logits[:, 6:8], "aux": logits[:, 8:]}
        weights = {"seg": 1.0, "edge": 1.0, "aux": 0.4}
        loss = SegmentationLoss(aux_weights=weights, own={"edge": EdgeCrossEntropy()})
        return loss(SimpleNamespace(main=logits[:, :3], aux=aux), target)["loss"]


LOSSES = {
    "cross entropy": (CrossEntropy(), 3),
    "weighted cross entropy": (CrossEntropy(WEIGHTS, label_smoothing=0.1), 3),
    "ohem": (CrossEntropy(ohem=Ohem(0.4, 20)), 3),
    "ohem of ocnet": (CrossEntropy(WEIGHTS, ohem=Ohem(0.4, 20, "ocnet")), 3),
    "focal": (Focal(WEIGHTS), 3),
    "dice": (Dice(), 3),
    "lovasz": (Lovasz(), 3),
    "rmi": (RMI(), 3),
    "edge": (EdgeCrossEntropy(), 2),
    "ce2p": (_CE2P(), 11),
    "segfix": (_SegFix(), 10),
    "sum": (WeightedSum((1.0, CrossEntropy()), (0.5, Dice())), 3),
}

every_loss = pytest.mark.parametrize(("loss", "channels"), LOSSES.values(), ids=LOSSES)


def draw(channels, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)


@pytest.fixture
def target():
    target = torch.zeros(2, 9, 11, dtype=torch.int64)
    target[:, :, 6:] = 1
    target[1, 5:, :4] = 2
    target[0, :4, 2:] = 255
    return target


@every_loss
def test_gradient(loss, channels, target):
    logits = draw(channels, (2, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target), logits)


@every_loss
def test_a_loss_is_a_scalar_that_a_step_makes_smaller(loss, channels, target):
    logits = draw(channels, (4, 5)).requires_grad_()
    value = loss(logits, target)
    assert value.shape == ()
    (grad,) = torch.autograd.grad(value, logits)
    assert loss(logits - 1e-3 * grad, target) < value


@every_loss
def test_ignored_pixels_have_neither_loss_nor_gradient(loss, channels, target):
    """At full size, where a logit belongs to one pixel."""
    logits, other = draw(channels, (9, 11)), draw(channels, (9, 11), seed=5)
    ignored = (target == 255).unsqueeze(1)
    changed = torch.where(ignored, other, logits)
    # OHEM of openseg.pytorch enters the first pixel, which is labelled here.
    torch.testing.assert_close(loss(changed, target), loss(logits, target), rtol=1e-12, atol=0)
    logits.requires_grad_()
    (grad,) = torch.autograd.grad(loss(logits, target), logits)
    assert not grad[ignored.expand_as(grad)].any()
    assert grad.any()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_ignored_is_zero_with_zero_gradient(loss, channels, target, dtype):
    logits = draw(channels, (4, 5)).to(dtype).requires_grad_()
    value = loss(logits, torch.full_like(target, 255))
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@every_loss
def test_uint8_targets_and_low_precision_logits(loss, channels, target):
    """bfloat16 logits are exact in float32: the arithmetic is that of float32."""
    logits = draw(channels, (4, 5)).bfloat16()
    value = loss(logits, target.byte())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), loss(logits.double(), target), rtol=1e-5, atol=1e-6)


@every_loss
def test_under_autocast_the_loss_stays_in_float32(loss, channels, target):
    logits = draw(channels, (4, 5)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, target)
    torch.testing.assert_close(value, loss(logits, target))


@pytest.mark.parametrize("name", ["cross entropy", "focal", "dice", "lovasz", "rmi"])
def test_a_label_out_of_range_is_named(name, target):
    target[0, 0, 0] = 7
    with pytest.raises(ValueError, match=r"label 7.*0\.\.2 or 255.*1 pixels"):
        LOSSES[name][0](draw(3, (4, 5)), target)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Focal(gamma=-1), "gamma"),
        (lambda: Dice(smooth=0), "smooth"),
        (lambda: RMI(weight=2), "weight"),
        (lambda: RMI(radius=0), "radius"),
        (lambda: SegFixLoss(threshold=1), "threshold"),
    ],
)
def test_options_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()
