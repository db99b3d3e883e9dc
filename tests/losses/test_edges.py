# SPDX-License-Identifier: MIT
"""Edges between labels, and their loss, pixel by pixel."""

import numpy as np
import pytest
import torch

from openseg.losses import EdgeCrossEntropy, edges_of
from tests.by_numpy import bilinear, softmax


def edges_by_pixel(label):
    height, width = label.shape
    marks = np.zeros((height, width), dtype=bool)

    def differ(i, j, k, m):
        inside = 0 <= k < height and 0 <= m < width
        return inside and label[i, j] != label[k, m] and 255 not in (label[i, j], label[k, m])

    for i in range(height):
        for j in range(width):
            neighbours = [(i, j + 1), (i - 1, j), (i + 1, j + 1), (i + 1, j - 1)]
            marks[i, j] = any(differ(i, j, k, m) for k, m in neighbours)
    result = np.full((height, width), 255)
    for i in range(height):
        for j in range(width):
            if label[i, j] != 255:
                result[i, j] = marks[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].any()
    return result


def draw():
    label = np.zeros((2, 12, 15), dtype=np.int64)
    label[:, 3:8, 4:9] = 2
    label[1, 6:, 10:] = 1
    label[0, 9, 2] = 4
    label[1, :6, 7:12] = 255
    return label


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_edges(dtype):
    label = draw()
    edges = edges_of(torch.from_numpy(label).to(dtype))
    assert edges.dtype == dtype
    known = np.stack([edges_by_pixel(x) for x in label])
    np.testing.assert_array_equal(edges.numpy(), known)
    assert set(known.ravel()) == {0, 1, 255}


def test_an_edge_by_hand():
    """The left pixel of two is marked, the lower one, and both marks grow by one."""
    label = torch.tensor([[[0, 0, 0, 0, 1, 1, 1]]])
    assert edges_of(label).tolist() == [[[0, 0, 1, 1, 1, 0, 0]]]
    assert edges_of(label.mT).squeeze().tolist() == [0, 0, 0, 1, 1, 1, 0]


def test_no_edge_along_ignored_pixels():
    assert edges_of(torch.tensor([[[0, 255, 1, 1]]])).tolist() == [[[0, 255, 0, 0]]]


def test_classes_weigh_the_share_of_the_other():
    label = draw()
    logits = np.random.default_rng(0).standard_normal((2, 2, 5, 6))
    edges = np.stack([edges_by_pixel(x) for x in label])
    p = softmax(bilinear(logits, label.shape[1:]), 1)
    here, there = edges == 1, edges == 0
    total = here.sum() + there.sum()
    weights = there.sum() / total, here.sum() / total  # of an edge, of none
    losses = weights[0] * -np.log(p[:, 1][here]).sum(), weights[1] * -np.log(p[:, 0][there]).sum()
    known = sum(losses) / (weights[0] * here.sum() + weights[1] * there.sum())
    value = EdgeCrossEntropy()(torch.from_numpy(logits), torch.from_numpy(label))
    assert value.item() == pytest.approx(known, rel=1e-6)  # the weights are float32


def test_a_picture_without_edges_has_no_loss():
    """The one class that there is weighs nothing; the published mean is then 0 / 0."""
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    value = EdgeCrossEntropy()(logits, torch.zeros(1, 8, 8, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert not logits.grad.any()
