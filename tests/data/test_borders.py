# SPDX-License-Identifier: MIT
"""Targets of SegFix: what they are, how they move with the image, and that kept ones are read."""

import numpy as np
import pytest
from PIL import Image

from openseg.data import BorderMasks, BorderOffsets, BorderTransform, DatasetInfo, Sample
from openseg.data.offsets import border_offsets
from openseg.errors import DataError, OutputError

PLAIN = {"scale_range": (1, 1), "aspect_range": (1, 1), "brightness": 0}


class Squares:
    """One image; its label is a rectangle in the middle and a column to ignore."""

    info = DatasetInfo("squares", ("outside", "inside"), ((0, 0, 0), (9, 9, 9)))
    name = "city/a"

    def __init__(self, labelled=True):
        self.label = np.zeros((30, 41), dtype=np.uint8)
        self.label[8:22, 10:33] = 1
        self.label[:, :3] = 255
        self.labelled = labelled

    def __len__(self):
        return 1

    def load(self, index):
        image = np.repeat(self.label[..., None], 3, axis=2)
        return Sample(image, self.label if self.labelled else None, self.name)


def test_offsets_and_masks_of_a_sample():
    dataset = Squares()
    target = BorderOffsets(dataset).load(0).label
    distance, half = border_offsets(dataset.label)
    np.testing.assert_array_equal(target, np.stack([dataset.label, distance, half], axis=2))
    mask = BorderMasks(dataset).load(0).label
    assert mask.dtype == np.uint8
    assert (mask[:, :3] == 255).all()
    np.testing.assert_array_equal(mask[:, 3:], (distance <= 5)[:, 3:])
    assert mask[15, 20] == 0  # 7 pixels from the next border
    assert BorderMasks(dataset, width=8).load(0).label[15, 20] == 1
    assert BorderOffsets(dataset).info.classes == ("interior", "boundary")
    assert BorderMasks(Squares(labelled=False))[0].label is None


def test_borders_of_instances():
    """The square is two things side by side and a third of 12 pixels; both are one class."""
    dataset = Squares()
    instances = dataset.label.astype(np.uint16)
    instances[8:22, 10:20] = 26_000
    instances[8:22, 20:33] = 26_001
    instances[10:13, 12:16] = 26_002
    instances[:, :3] = np.arange(30)[:, None] // 9  # of what is ignored, borders do not count
    asked = []
    borders = BorderOffsets(dataset, instances=lambda index: asked.append(index) or instances)
    target = borders.load(0).label
    assert asked == [0]
    regions = np.where(dataset.label == 255, 255, instances)
    np.testing.assert_array_equal(target[..., 0], dataset.label)
    np.testing.assert_array_equal(target[..., 1:], np.stack(border_offsets(regions, 255, 0), 2))
    degrees = 2 * target[..., 2].astype(int) - 180
    assert target[15, [18, 19, 20, 21], 1].tolist() == [2, 1, 1, 2]
    assert np.abs(degrees[15, 19]) >= 178  # to the left, away from the other instance
    assert -2 <= degrees[15, 20] <= 0
    assert target[11, 12:16, 1].tolist() == [1, 2, 2, 1]
    mask = BorderMasks(dataset, instances=lambda _: instances).load(0).label
    assert mask[15, 20] == 1  # of a class, 7 pixels from its border
    with pytest.raises(DataError, match=r"city/a: instances of shape \(30, 40\), \(30, 41\) exp"):
        BorderOffsets(dataset, instances=lambda _: instances[:, 1:]).load(0)


def test_a_mirrored_target_is_that_of_the_mirrored_label():
    dataset = Squares()
    sample = BorderOffsets(dataset).load(0)
    transform = BorderTransform(dataset.label.shape, **PLAIN)
    found = set()
    for seed in range(8):
        image, target = transform(sample, np.random.default_rng(seed))
        mirrored = bool((target[0] != dataset.label).any())
        found.add(mirrored)
        label = dataset.label[:, ::-1] if mirrored else dataset.label
        assert target.shape == (3, *label.shape)
        np.testing.assert_array_equal(target[0], label)
        np.testing.assert_array_equal(transform.normalize.undo(image)[..., 0], label)
        distance, half = border_offsets(label)
        np.testing.assert_array_equal(target[1], distance)
        away = np.abs(target[2].astype(int) - half) % 180
        away = np.minimum(away, 180 - away)
        flat = (half == 90) & (target[2] == 180)  # no gradient: any direction is as good
        assert away[(label != 255) & ~flat].max() <= 1  # both are rounded down
        assert flat.mean() < 0.2
    assert found == {False, True}


def test_a_crop_and_its_padding():
    sample = BorderOffsets(Squares()).load(0)
    options = {**PLAIN, "flip": False}
    transform = BorderTransform((40, 20), padding="right_down", **options)
    _, target = transform(sample, np.random.default_rng(0))
    assert target.shape == (3, 40, 20)
    assert (target[:, 30:] == 255).all()
    columns = [np.array_equal(target[:, :30].transpose(1, 2, 0), sample.label[:, left : left + 20])
               for left in range(22)]  # fmt: skip
    assert sum(columns) == 1


def test_kept_offsets_are_read_and_must_fit(tmp_path):
    folder = tmp_path / "offsets" / "train"
    kept = BorderOffsets(Squares(), folder)
    first = kept.load(0).label
    assert [path.name for path in (folder / "city").iterdir()] == ["a.png"]
    np.testing.assert_array_equal(kept.load(0).label, first)
    with Image.open(folder / "city" / "a.png") as file:
        marked = np.array(file)
    marked[0, 0] = 77, 11
    Image.fromarray(marked).save(folder / "city" / "a.png")
    assert kept.load(0).label[0, 0].tolist() == [255, 77, 11]
    Image.fromarray(marked[:-1]).save(folder / "city" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: .*\(29, 41, 2\), \(30, 41, 2\) expected"):
        kept.load(0)
    (folder / "city" / "a.png").write_text("nothing")
    with pytest.raises(DataError, match=r"a\.png: cannot be read"):
        kept.load(0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"a\.png: cannot be written"):
        BorderOffsets(Squares(), tmp_path / "file").load(0)
