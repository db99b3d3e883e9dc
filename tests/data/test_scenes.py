# SPDX-License-Identifier: MIT
"""ContextScenes: equal everywhere, and no more to be told from a neighbourhood than by guessing."""

import zlib

import numpy as np
import pytest

from openseg.data import ContextScenes
from openseg.data.datasets import scenes

SKY, WOODS, FIELDS, MEADOW = 0, (1, 2, 3), (4, 5, 6), 7


def crc(*arrays):
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(np.ascontiguousarray(array).tobytes(), checksum)
    return checksum


@pytest.mark.parametrize(
    ("size", "arguments", "index", "expected"),
    [
        ((128, 128), {}, 0, 0x1BCD8A62),
        ((128, 128), {}, 999, 0x63B83E60),
        ((96, 160), {"seed": 7, "split": "val"}, 3, 0x8BCBFEF2),
        ((33, 47), {"split": "test"}, 5, 0x9D8EEB55),
    ],
)
def test_pixels_are_the_same_on_every_platform(size, arguments, index, expected):
    sample = ContextScenes(size, **arguments)[index]
    assert sample.image.shape == (*size, 3)
    assert sample.label.shape == size
    assert sample.image.dtype == sample.label.dtype == np.uint8
    assert crc(sample.image, sample.label) == expected


def test_scenes_differ_by_seed_split_and_index():
    samples = [
        ContextScenes((64, 64), 10, seed, split)[index]
        for seed in (0, 1)
        for split in ("train", "val", "test")
        for index in (0, 1)
    ]
    assert len({crc(sample.image) for sample in samples}) == len(samples)
    assert len({sample.name for sample in samples}) == 6


def test_every_scene_has_both_cues_and_one_kind_of_each():
    dataset = ContextScenes((64, 64), length=40)
    kinds = set()
    for index in range(len(dataset)):
        present = set(np.unique(dataset[index].label))
        assert {SKY, MEADOW, 8, 9} <= present
        (wood,), (field,) = present & set(WOODS), present & set(FIELDS)
        kinds.add((wood, field))
    assert len(kinds) == 9


def test_kinds_change_cues_and_labels_and_nothing_else():
    """No pixel of a wood or a field depends on its kind: neither the look nor the lay of the land
    can betray it."""
    pictures = {
        (wood, field): scenes.draw_scene(scenes._Dice(11), 80, 96, wood, field)
        for wood in range(scenes.KINDS)
        for field in range(scenes.KINDS)
    }
    base_image, base_label = pictures[0, 0]
    for (wood, field), (image, label) in pictures.items():
        changed = (image != base_image).any(axis=-1)
        assert (base_label[changed] == SKY).any() == (field > 0)
        assert (base_label[changed] == MEADOW).any() == (wood > 0)
        assert np.isin(base_label[changed], (SKY, MEADOW)).all()
        expected = base_label + wood * (base_label == WOODS[0]) + field * (base_label == FIELDS[0])
        np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("group", [WOODS, FIELDS])
def test_patches_tell_no_kind(group):
    """The nearest mean of 9×9 patches, cues left out, does no better than guessing one of three."""
    margin = 4

    def patches(split, length):
        dataset = ContextScenes((48, 48), length, split=split)
        values, kinds, owners = [], [], []
        for index in range(length):
            image, label, _ = dataset[index]
            views = np.lib.stride_tricks.sliding_window_view(label, (9, 9), axis=(0, 1))
            clean = np.isin(views, group).all(axis=(2, 3))
            for y, x in np.argwhere(clean)[::7]:
                values.append(image[y : y + 9, x : x + 9].ravel())
                kinds.append(label[y + margin, x + margin] - group[0])
                owners.append(index)
        return np.array(values, dtype=np.float32), np.array(kinds), np.array(owners)

    values, kinds, _ = patches("train", 150)
    means = np.stack([values[kinds == kind].mean(axis=0) for kind in range(3)])
    values, kinds, owners = patches("val", 150)
    distance = (means**2).sum(axis=1) - 2 * values @ means.T
    right = distance.argmin(axis=1) == kinds
    # Pixels of one scene share a kind, so scenes, not pixels, are the independent draws.
    scores = np.array([right[owners == owner].mean() for owner in np.unique(owners)])
    error = scores.std() / np.sqrt(len(scores))
    assert abs(scores.mean() - 1 / 3) < 4 * error
    assert error < 0.04  # so that a score of one half would fail


def test_limits():
    with pytest.raises(ValueError, match="size: "):
        ContextScenes((31, 64))
    with pytest.raises(ValueError, match="split: 'training'; expected one of train, val, test"):
        ContextScenes(split="training")
    with pytest.raises(IndexError):
        ContextScenes(length=3).load(3)
    assert len(ContextScenes(length=3)) == 3
