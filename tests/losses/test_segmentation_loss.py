# SPDX-License-Identifier: MIT
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from openseg.losses import SegmentationLoss
from openseg.ops import Ohem, upsample_cross_entropy


@pytest.fixture
def output():
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    return SimpleNamespace(main=draw[0].requires_grad_(), aux={"aux": draw[1].requires_grad_()})


@pytest.fixture
def target():
    target = torch.randint(0, 3, (2, 17, 21), generator=torch.Generator().manual_seed(1))
    target[:, :4] = 255
    return target


def cross_entropy(logits, target, **options):
    upsampled = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
    return F.cross_entropy(upsampled, target, ignore_index=255, **options)


def test_sum_of_main_and_weighted_auxiliary_losses(output, target):
    losses = SegmentationLoss()(output, target)
    main, aux = cross_entropy(output.main, target), cross_entropy(output.aux["aux"], target)
    assert losses.keys() == {"loss", "main", "aux"}
    torch.testing.assert_close(losses["main"], main)
    torch.testing.assert_close(losses["aux"], aux)
    torch.testing.assert_close(losses["loss"], main + 0.4 * aux)


def test_options_reach_every_term(output, target):
    weights = [1.0, 0.5, 2.0]
    criterion = SegmentationLoss({"aux": 1.0}, weights, label_smoothing=0.1)
    options = {"weight": torch.tensor(weights, dtype=torch.float64), "label_smoothing": 0.1}
    known = sum(cross_entropy(x, target, **options) for x in (output.main, output.aux["aux"]))
    torch.testing.assert_close(criterion(output, target)["loss"], known)
    assert not criterion.state_dict()


def test_all_ignored_is_zero_with_zero_gradient(output, target):
    loss = SegmentationLoss()(output, torch.full_like(target, 255))["loss"]
    loss.backward()
    assert loss.item() == 0
    assert not output.main.grad.any()
    assert not output.aux["aux"].grad.any()


def test_an_output_without_a_weight_is_an_error(output, target):
    with pytest.raises(ValueError, match=r"\['aux'\]"):
        SegmentationLoss({"edge": 1.0})(output, target)


def test_a_network_without_auxiliary_output(output, target):
    output.aux = {}
    assert SegmentationLoss()(output, target).keys() == {"loss", "main"}


@pytest.mark.parametrize("everywhere", [False, True])
def test_hard_pixels_of_the_main_logits_alone_by_default(output, target, everywhere):
    ohem = Ohem(thresh=0.4, min_kept=20)
    losses = SegmentationLoss(ohem=ohem, ohem_aux=everywhere)(output, target)
    main = upsample_cross_entropy(output.main, target, ohem=ohem)
    aux = upsample_cross_entropy(output.aux["aux"], target, ohem=ohem if everywhere else None)
    assert main > upsample_cross_entropy(output.main, target)
    torch.testing.assert_close(losses["main"], main)
    torch.testing.assert_close(losses["aux"], aux)
    torch.testing.assert_close(losses["loss"], main + 0.4 * aux)
