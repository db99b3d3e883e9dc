# SPDX-License-Identifier: MIT
"""Online hard example mining in upsample_cross_entropy, against a sorted list of pixels."""

import math

import pytest
import torch
import torch.nn.functional as F

from openseg import _ext
from openseg.ops import Ohem, upsample_cross_entropy

WEIGHT = torch.tensor([0.5, 1.5, 2.0, 0.25, 1.0], dtype=torch.float64)


def case(spread=3.0, seed=0, first_ignored=False):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(2, 5, 4, 6, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 5, (2, 13, 22), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = 255
    target[0, 0, 0] = 255 if first_ignored else 2
    return logits, target


def by_hand(logits, target, ohem, weight):
    """The published rules, pixel by pixel."""
    probabilities = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
    probabilities = probabilities.softmax(1).movedim(1, -1).flatten(0, 2).tolist()
    pixels = []  # (probability, loss, weight)
    for i, (row, label) in enumerate(zip(probabilities, target.flatten().tolist(), strict=True)):
        if label != 255:
            p = row[label]
            pixels.append((p, -math.log(p) * weight[label], weight[label]))
        elif i == 0 and ohem.variant == "openseg":
            pixels.append((row[0], 0.0, 0.0))
    ordered = sorted(p for p, _, _ in pixels)
    if ohem.variant == "openseg":
        limit = max(ohem.thresh, ordered[min(ohem.min_kept, len(ordered) - 1)])
        kept = [pixel for pixel in pixels if pixel[0] < limit]
        total = len(kept)
    else:
        limit = ohem.thresh
        if ohem.min_kept > 0:
            limit = max(limit, ordered[min(ohem.min_kept, len(ordered)) - 1])
        kept = [pixel for pixel in pixels if pixel[0] <= limit or ohem.min_kept >= len(pixels)]
        total = sum(pixel[2] for pixel in kept)
    return sum(pixel[1] for pixel in kept) / total if kept else 0.0


@pytest.mark.parametrize("variant", ["openseg", "ocnet"])
@pytest.mark.parametrize("first_ignored", [False, True])
@pytest.mark.parametrize(
    ("thresh", "min_kept"), [(0.7, 0), (0.7, 50), (0.1, 300), (0.0, 1), (0.0, 0), (0.7, 100_000)]
)
def test_published_rules(variant, first_ignored, thresh, min_kept):
    logits, target = case(first_ignored=first_ignored)
    ohem = Ohem(thresh, min_kept, variant)
    loss = upsample_cross_entropy(logits, target, weight=WEIGHT, ohem=ohem)
    assert loss.item() == pytest.approx(by_hand(logits, target, ohem, WEIGHT.tolist()), abs=1e-12)


@pytest.mark.parametrize("variant", ["openseg", "ocnet"])
def test_only_hard_pixels_have_loss_and_gradient(variant):
    logits, target = case()
    logits.requires_grad_()
    each = upsample_cross_entropy(logits, target, reduction="none")
    hard = (torch.exp(-each) < 0.3) & (target != 255)
    mined = upsample_cross_entropy(logits, target, ohem=Ohem(0.3, 0, variant), reduction="none")
    torch.testing.assert_close(mined, torch.where(hard, each, 0))
    (known,) = torch.autograd.grad(torch.where(hard, each, 0).sum(), logits)
    (grad,) = torch.autograd.grad(mined.sum(), logits)
    torch.testing.assert_close(grad, known)


@pytest.mark.parametrize("variant", ["openseg", "ocnet"])
@pytest.mark.parametrize("ignored", [False, True])
def test_nothing_hard_is_zero_with_zero_gradient(variant, ignored):
    logits, target = case()
    logits.requires_grad_()
    target = torch.full_like(target, 255) if ignored else target
    loss = upsample_cross_entropy(logits, target, ohem=Ohem(0.0, 0, variant))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(
    "ohem", [Ohem(variant="hard"), Ohem(thresh=1.5), Ohem(min_kept=-1), Ohem(thresh=float("nan"))]
)
def test_options_out_of_range(ohem):
    logits, target = case()
    with pytest.raises(ValueError, match="ohem"):
        upsample_cross_entropy(logits, target, ohem=ohem)


@pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))
@pytest.mark.parametrize("variant", ["openseg", "ocnet"])
@pytest.mark.parametrize("levels", [1, 3, 1000])
@pytest.mark.parametrize("thresh", [0.0, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("min_kept", [0, 1, 137, 500, 100_000])
def test_kernel_finds_the_limit_of_a_sort(variant, levels, thresh, min_kept):
    """With few levels of logits many probabilities are equal."""
    generator = torch.Generator().manual_seed(levels)
    logits = 4 * torch.randint(0, levels, (2, 5, 17, 19), generator=generator) / levels
    target = torch.randint(-1, 5, (2, 17, 19), generator=generator)
    target[0, 0, 0] = 1
    _, lse, probability, totals = torch.ops.openseg.upsample_cross_entropy(
        logits, target, None, True, -1, 0.0, variant, thresh, min_kept, False
    )
    valid = target >= 0
    assert torch.equal(probability >= 0, valid)
    ordered = probability[valid].sort().values
    limit = torch.tensor(thresh)
    if variant == "openseg":
        limit = torch.maximum(limit, ordered[min(min_kept, len(ordered) - 1)])
        kept = valid & (probability < limit)
    else:
        if min_kept > 0:
            limit = torch.maximum(limit, ordered[min(min_kept, len(ordered)) - 1])
        kept = valid & ((probability <= limit) | (min_kept >= len(ordered)))
    assert torch.equal(lse != float("inf"), kept)
    assert totals[1] == kept.sum()
