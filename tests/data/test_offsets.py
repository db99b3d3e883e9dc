# SPDX-License-Identifier: MIT
"""Distances by brute force, directions by hand."""

import numpy as np
import pytest

from openseg.data.offsets import border_offsets


def brute_force(label):
    """The distance of every pixel to the nearest of another label."""
    places = np.stack(np.indices(label.shape), axis=-1).reshape(-1, 2)
    values = label.reshape(-1)
    squared = ((places[:, None] - places[None]) ** 2).sum(axis=2).astype(float)
    squared[values[:, None] == values[None]] = np.inf
    return np.sqrt(squared.min(axis=1)).reshape(label.shape)


@pytest.mark.parametrize("seed", range(4))
def test_distances_are_exact(seed):
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 3, (5, 7)).repeat(3, axis=0).repeat(2, axis=1)
    distance, _ = border_offsets(label, smallest=0)
    assert np.array_equal(distance, brute_force(label).astype(np.uint8))


def test_directions_point_inwards():
    """A square in the middle: from each side and corner towards its centre."""
    label = np.zeros((20, 20), dtype=np.uint8)
    label[5:16, 5:16] = 1
    _, half = border_offsets(label, smallest=0)
    degrees = 2 * half.astype(int) - 180
    known = {
        (10, 5): 0,  # left side: to the right
        (5, 10): 90,  # upper side: downwards
        (10, 15): 180,
        (15, 10): -90,
        (5, 5): 45,
        (5, 15): 135,
        (15, 15): -135,
        (15, 5): -45,
    }
    for place, angle in known.items():
        assert (degrees[place] - angle + 180) % 360 - 180 in (-2, -1, 0), place
    assert abs(degrees[10, 4]) >= 178  # outside of the square the way inwards leads away from it
    assert abs(degrees[4, 10] + 90) <= 2


def test_ignored_and_small_regions_have_no_direction():
    label = np.zeros((16, 16), dtype=np.int64)
    label[:, 8:] = 255
    label[2:4, 2:4] = 7
    distance, half = border_offsets(label, smallest=5)
    assert not distance[:, 8:].any()
    assert not distance[2:4, 2:4].any()
    assert (half[:, 8:] == 90).all()
    assert (half[2:4, 2:4] == 90).all()
    assert distance[0, 7] == 1  # what is ignored is another region all the same
    assert distance[15, 0] == 8


def test_one_region_is_as_far_as_can_be_said():
    distance, _ = border_offsets(np.zeros((300, 4), dtype=np.uint8))
    assert (distance == 250).all()


def test_classes_of_directions_are_those_of_the_loss():
    """What the network is trained on leads, by the class's step, to a place further inside."""
    import torch

    from openseg.losses.segfix import directions_of
    from openseg.models.segfix import DIRECTIONS

    label = np.zeros((24, 24), dtype=np.uint8)
    label[4:20, 6:18] = 1
    distance, half = border_offsets(label, smallest=0)
    classes = directions_of(torch.from_numpy(half)).numpy()
    border = np.argwhere((distance == 1) & (label == 1))
    for row, column in border:
        down, right = DIRECTIONS[classes[row, column]]
        assert distance[row + down, column + right] > 1
        assert label[row + down, column + right] == 1
