# SPDX-License-Identifier: MIT
"""RMI against the formula written out for each image and class, with determinants by NumPy."""

import numpy as np
import pytest
import torch

from openseg.losses import RMI
from tests.by_numpy import bilinear


def draw(size=(13, 17), classes=3):
    rng = np.random.default_rng(0)
    target = rng.integers(0, classes, (2, *size))
    target[1, :5, :8] = 255
    return rng.standard_normal((2, classes, 6, 7)), target


def max_pool(x, stride):
    """Windows of `stride` pixels that start half of it outside."""
    half = stride // 2
    starts = [range(-half, n + half - stride + 1, stride) for n in x.shape]
    return np.array(
        [
            [x[max(i, 0) : i + stride, max(j, 0) : j + stride].max() for j in starts[1]]
            for i in starts[0]
        ]
    )


def vectors(x, radius):
    """[radius², places], centred."""
    rows, columns = (n - radius + 1 for n in x.shape)
    columns_of = [
        x[i : i + radius, j : j + radius].ravel() for i in range(rows) for j in range(columns)
    ]
    v = np.stack(columns_of, 1)
    return v - v.mean(1, keepdims=True)


def by_definition(logits, target, weight=0.5, radius=3, stride=3):
    scores = bilinear(logits, target.shape[1:])
    p = 1 / (1 + np.exp(-scores))
    valid = target != 255
    y = np.stack([(target == k) & valid for k in range(scores.shape[1])], 1).astype(float)
    entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p)).sum(1)[valid].sum() / (valid.sum() + 1)
    unit = 1e-3 * np.eye(radius**2)
    regional = 0.0
    for image in range(len(target)):
        for k in range(scores.shape[1]):
            a = vectors(max_pool(y[image, k], stride), radius)
            b = vectors(max_pool(p[image, k] * valid[image] + 1e-6, stride), radius)
            cross = a @ b.T
            left = a @ a.T - cross @ np.linalg.inv(b @ b.T + unit) @ cross.T + unit
            regional += 0.5 * np.linalg.slogdet(left)[1] / radius**2
    return weight * entropy + (1 - weight) * regional / len(target)


@pytest.mark.parametrize(
    "options",
    [{}, {"weight": 0.2}, {"radius": 2, "stride": 2}, {"stride": 1}],
    ids=str,
)
def test_equals_the_definition(options):
    logits, target = draw()
    value = RMI(**options)(torch.from_numpy(logits), torch.from_numpy(target)).item()
    # The published logarithm has 1e-8 added to the roots, which are 0.03 at least.
    assert value == pytest.approx(by_definition(logits, target, **options), rel=1e-6)


def test_an_image_without_labels_leaves_the_others_as_they_are():
    """As published it counts in the mean over the batch."""
    logits, target = (torch.from_numpy(x) for x in draw())
    alone = RMI(weight=0)(logits[:1], target[:1])
    target[1] = 255
    assert RMI(weight=0)(logits, target).item() == pytest.approx(alone.item() / 2)


def test_a_target_too_small_for_a_neighbourhood():
    logits, target = (torch.from_numpy(x) for x in draw(size=(6, 20)))
    with pytest.raises(ValueError, match=r"20×6; .* at least 7×7"):
        RMI()(logits, target)
    assert RMI()(logits, torch.zeros(2, 7, 7, dtype=torch.int64)).isfinite()
