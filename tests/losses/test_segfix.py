# SPDX-License-Identifier: MIT
"""Both losses of SegFix against their definition in NumPy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from openseg.losses import SegFixLoss
from openseg.losses.segfix import directions_of
from tests.by_numpy import bilinear, softmax


def draw():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (2, 11, 13))
    label[0, 4:6] = 255
    target = np.stack(
        [label, rng.integers(0, 12, label.shape), rng.integers(0, 181, label.shape)], 1
    )
    return rng.standard_normal((2, 2, 4, 5)), rng.standard_normal((2, 8, 4, 5)), target


def loss_of(mask, direction, target, **options):
    output = SimpleNamespace(
        main=torch.from_numpy(mask), aux={"direction": torch.from_numpy(direction)}
    )
    return SegFixLoss(**options)(output, torch.from_numpy(target))


def weighted_cross_entropy(probability, classes, counted):
    """Mean over the counted pixels, weights 1 - (share of the class)."""
    p = np.take_along_axis(probability, classes[:, None], 1)[:, 0][counted]
    classes = classes[counted]
    shares = np.bincount(classes, minlength=probability.shape[1]) / len(classes)
    weights = (1 - shares)[classes]
    return (weights * -np.log(p)).sum() / weights.sum()


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_equals_the_definition(threshold):
    mask, direction, target = draw()
    label, distance, half_angle = np.moveaxis(target, 1, 0)
    p_mask, p_direction = (softmax(bilinear(x, label.shape[1:]), 1) for x in (mask, direction))
    valid = label != 255
    known_mask = weighted_cross_entropy(p_mask, (distance <= 5).astype(int), valid)
    angle = 2 * half_angle - 180
    centers = -180 + 45 * np.arange(8)
    away = np.abs((angle[..., None] - centers + 180) % 360 - 180)
    found = p_mask[:, 1] > threshold
    known_direction = weighted_cross_entropy(p_direction, away.argmin(-1), valid & found)
    losses = loss_of(mask, direction, target, threshold=threshold)
    assert losses["mask"].item() == pytest.approx(known_mask, rel=1e-6)  # weights are float32
    assert losses["direction"].item() == pytest.approx(known_direction, rel=1e-6)
    torch.testing.assert_close(losses["loss"], losses["mask"] + losses["direction"])


def test_without_a_found_boundary_there_is_no_direction_to_learn():
    mask, direction, target = draw()
    mask[:, 0] += 100
    assert loss_of(mask, direction, target)["direction"].item() == 0


def test_directions_by_hand():
    """-180° is the first class, and 157.6° to 180° belong to it too."""
    half = torch.tensor([0, 11, 12, 33, 34, 90, 168, 169, 180], dtype=torch.uint8)
    assert directions_of(half).tolist() == [0, 0, 1, 1, 2, 4, 7, 0, 0]
