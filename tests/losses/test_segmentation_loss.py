# SPDX-License-Identifier: MIT
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from openseg.losses import (
    CLASS_WEIGHTS,
    CrossEntropy,
    Dice,
    EdgeCrossEntropy,
    Focal,
    SegmentationLoss,
    WeightedSum,
)
from openseg.ops import Ohem, upsample_cross_entropy


@pytest.fixture
def output():
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(2, 3, 5, 6, generator=generator, dtype=torch.float64) for _ in range(2)]
    return SimpleNamespace(main=draw[0], aux={"aux": draw[1]})


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


def test_options_of_cross_entropy(output, target):
    weights = [1.0, 0.5, 2.0]
    criterion = CrossEntropy(weights, label_smoothing=0.1)
    options = {"weight": torch.tensor(weights, dtype=torch.float64), "label_smoothing": 0.1}
    known = cross_entropy(output.main, target, **options)
    torch.testing.assert_close(criterion(output.main, target), known)
    assert not criterion.state_dict()


def test_hard_pixels_of_the_main_logits_alone_by_default(output, target):
    ohem = Ohem(thresh=0.4, min_kept=20)
    losses = SegmentationLoss(CrossEntropy(ohem=ohem))(output, target)
    main = upsample_cross_entropy(output.main, target, ohem=ohem)
    assert main > upsample_cross_entropy(output.main, target)
    torch.testing.assert_close(losses["main"], main)
    torch.testing.assert_close(losses["aux"], cross_entropy(output.aux["aux"], target))


def test_outputs_of_ce2p_have_their_own_weights_and_the_edge_its_own_loss(output, target):
    edge = torch.randn(2, 2, 5, 6, generator=torch.Generator().manual_seed(3)).double()
    output.aux = {"seg": output.main + 1, "edge": edge, "aux": output.aux["aux"]}
    weights = {"seg": 1.0, "edge": 1.0, "aux": 0.4}
    losses = SegmentationLoss(aux_weights=weights, own={"edge": EdgeCrossEntropy()})(output, target)
    seg1, seg2, aux = (
        cross_entropy(x, target) for x in (output.aux["seg"], output.main, output.aux["aux"])
    )
    known = seg1 + seg2 + EdgeCrossEntropy()(edge, target) + 0.4 * aux
    torch.testing.assert_close(losses["loss"], known)


def test_an_output_without_a_weight_is_an_error(output, target):
    with pytest.raises(ValueError, match=r"\['aux'\]"):
        SegmentationLoss(aux_weights={"edge": 1.0})(output, target)


def test_a_network_without_auxiliary_output(output, target):
    output.aux = {}
    assert SegmentationLoss()(output, target).keys() == {"loss", "main"}


def test_weighted_sum(output, target):
    value = WeightedSum((0.5, CrossEntropy()), (2.0, Dice()))(output.main, target)
    known = 0.5 * CrossEntropy()(output.main, target) + 2 * Dice()(output.main, target)
    torch.testing.assert_close(value, known)


def test_focal_loss_without_focus_is_cross_entropy(output, target):
    weights = [1.0, 0.5, 2.0]
    value = Focal(weights, gamma=0)(output.main, target)
    torch.testing.assert_close(value, CrossEntropy(weights)(output.main, target))


def test_focal_loss_by_hand():
    """Two pixels with probabilities ¾ and ¼ of their own class, weights 1 and 3."""
    logits = torch.tensor([[[[3.0, 3.0]], [[1.0, 1.0]]]], dtype=torch.float64).log()
    value = Focal([1.0, 3.0], gamma=2)(logits, torch.tensor([[[0, 1]]]))
    p = torch.tensor([0.75, 0.25], dtype=torch.float64)
    known = ((1 - p) ** 2 * -p.log() * torch.tensor([1, 3])).sum() / 4
    torch.testing.assert_close(value, known)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_of_a_sure_pixel_has_a_finite_gradient(gamma):
    logits = torch.tensor([200.0, -200.0]).view(1, 2, 1, 1).requires_grad_()
    Focal(gamma=gamma)(logits, torch.zeros(1, 1, 1, dtype=torch.int64)).backward()
    assert logits.grad.isfinite().all()


def test_published_class_weights():
    weights = CLASS_WEIGHTS["cityscapes"]
    assert len(weights) == 19
    assert (weights[0], weights[17], weights[18]) == (0.8373, 1.1529, 1.0507)
    assert sum(weights) == pytest.approx(19.0001)
