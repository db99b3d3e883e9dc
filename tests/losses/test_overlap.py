# SPDX-License-Identifier: MIT
"""Dice and Lovász-softmax against their definitions in NumPy."""

import itertools

import numpy as np
import pytest
import torch

from openseg.losses import Dice, Lovasz
from tests.by_numpy import bilinear, softmax


@pytest.fixture
def logits():
    return np.random.default_rng(0).standard_normal((2, 4, 5, 3))


@pytest.fixture
def target():
    """Class 3 does not occur."""
    target = np.random.default_rng(1).integers(0, 3, (2, 9, 7))
    target[1, 2:5] = 255
    return target


def probabilities(logits, target):
    """[K, N] of the valid pixels, and their labels [N]."""
    full = softmax(bilinear(logits, target.shape[1:]), 1)
    valid = target != 255
    return np.moveaxis(full, 1, 0)[:, valid], target[valid]


def loss_of(loss, logits, target):
    return loss(torch.from_numpy(logits), torch.from_numpy(target)).item()


def test_dice(logits, target):
    p, labels = probabilities(logits, target)
    known = []
    for k in range(3):
        y = labels == k
        known.append(1 - (2 * p[k][y].sum() + 0.5) / (p[k].sum() + y.sum() + 0.5))
    value = loss_of(Dice(smooth=0.5), logits, target)
    assert value == pytest.approx(np.mean(known), rel=1e-12)


def test_lovasz(logits, target):
    """The sum over thresholds of the Jaccard loss of the pixels whose error is above them."""
    p, labels = probabilities(logits, target)
    known = []
    for k in range(3):
        y = labels == k
        errors = np.abs(y - p[k])
        steps = np.sort(np.concatenate([[0], errors]))
        loss = 0
        for low, high in itertools.pairwise(steps):
            wrong = errors >= high
            missed, added = (wrong & y).sum(), (wrong & ~y).sum()
            loss += (high - low) * (missed + added) / (y.sum() + added)
        known.append(loss)
    assert loss_of(Lovasz(), logits, target) == pytest.approx(np.mean(known), rel=1e-12)


@pytest.mark.parametrize("loss", [Dice(smooth=1e-9), Lovasz()])
def test_sure_predictions_have_the_loss_of_their_overlap(loss):
    """Two of three pixels right: IoU ½ and ⅔… and Dice by the same counts."""
    target = torch.tensor([[[0, 0, 1, 1, 1]]])
    predicted = torch.tensor([[[0, 1, 1, 1, 1]]])
    logits = 500 * torch.nn.functional.one_hot(predicted, 2).permute(0, 3, 1, 2).double()
    iou = torch.tensor([1 / 2, 3 / 4])
    overlap = 2 * iou / (1 + iou) if isinstance(loss, Dice) else iou
    assert loss(logits, target).item() == pytest.approx(1 - overlap.mean().item(), abs=1e-7)


@pytest.mark.parametrize("loss", [Dice(), Lovasz()])
def test_a_right_prediction_has_no_loss(loss, target):
    labels = torch.from_numpy(target)
    known = torch.where(labels == 255, 0, labels)
    logits = 500 * torch.nn.functional.one_hot(known, 4).permute(0, 3, 1, 2).double()
    assert loss(logits, labels).item() == pytest.approx(0, abs=1e-12)
