# SPDX-License-Identifier: MIT
"""The metrics against confusion matrices worked out by hand."""

import json
import math

import pytest
import torch

from openseg.metrics import ConfusionMatrix, SegmentationMetrics


def count(target, prediction, num_classes, **options):
    confusion = ConfusionMatrix(num_classes, **options)
    confusion.update(torch.tensor(prediction), torch.tensor(target))
    return confusion


def test_by_hand():
    metrics = count([0, 0, 0, 1, 1, 2, 255, 255], [0, 0, 1, 1, 2, 2, 0, 2], 3).result()
    assert metrics.confusion.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert metrics.iou.tolist() == [2 / 3, 1 / 3, 1 / 2]
    assert metrics.class_accuracy.tolist() == [2 / 3, 1 / 2, 1.0]
    assert metrics.mean_iou == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3, rel=1e-15)
    assert metrics.mean_accuracy == pytest.approx((2 / 3 + 1 / 2 + 1) / 3, rel=1e-15)
    assert metrics.pixel_accuracy == 4 / 6


def test_absent_and_only_predicted_classes():
    # Class 2 occurs nowhere; class 3 is predicted once and is in no target.
    metrics = count([0, 0, 1, 1], [0, 3, 1, 1], 4).result()
    assert metrics.iou[:2].tolist() == [1 / 2, 1.0]
    assert math.isnan(metrics.iou[2])
    assert metrics.iou[3] == 0
    assert metrics.mean_iou == (1 / 2 + 1 + 0) / 3
    assert metrics.class_accuracy[2:].isnan().all()
    assert metrics.mean_accuracy == 3 / 4


def test_nothing_counted_is_nan():
    metrics = count([255, 255], [0, 1], 2).result()
    assert metrics.confusion.sum() == 0
    assert all(map(math.isnan, (metrics.mean_iou, metrics.pixel_accuracy, metrics.mean_accuracy)))
    assert metrics.to_dict()["mean_iou"] is None


def test_counts_are_exact_where_float32_is_not():
    metrics = SegmentationMetrics(torch.tensor([[2**40 + 1, 1], [0, 1]]), ("a", "b"))
    assert metrics.iou[0].item() == (2**40 + 1) / (2**40 + 2)


def test_updates_add_up_over_batches_dtypes_and_another_ignore_index():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 5, (3, 7, 5), generator=generator, dtype=torch.uint8)
    prediction = torch.randint(1, 5, (3, 7, 5), generator=generator)
    confusion = ConfusionMatrix(5, ignore_index=0)
    for one_prediction, one_target in zip(prediction, target, strict=True):
        confusion.update(one_prediction, one_target)
    expected = [
        [int(((target == t) & (prediction == p)).sum()) if t else 0 for p in range(5)]
        for t in range(5)
    ]
    assert confusion.matrix.tolist() == expected


def test_values_that_are_no_class_are_named():
    with pytest.raises(ValueError, match="7"):
        count([0, 7], [0, 0], 3)


def test_number_of_names():
    with pytest.raises(ValueError, match="2 names"):
        ConfusionMatrix(3, class_names=["a", "b"])


def test_result_is_a_snapshot():
    confusion = count([0], [0], 2)
    before = confusion.result()
    confusion.update(torch.tensor([1]), torch.tensor([0]))
    assert before.confusion.tolist() == [[1, 0], [0, 0]]


def test_to_dict_is_plain_and_readable_as_json():
    metrics = count([0, 0, 1], [0, 1, 1], 3, class_names=["sky", "road", "Straße"]).result()
    record = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert record["classes"]["sky"] == {"iou": 0.5, "accuracy": 0.5, "pixels": 2}
    assert record["classes"]["Straße"] == {"iou": None, "accuracy": None, "pixels": 0}
    assert record["mean_iou"] == 0.5
    assert record["pixel_accuracy"] == 2 / 3


def test_table_shows_every_class_aligned():
    metrics = count([0, 0, 1], [0, 1, 1], 3, class_names=["sky", "road", "a long name"]).result()
    lines = str(metrics).splitlines()
    assert lines[0].split() == ["class", "IoU", "%", "accuracy", "%", "pixels", "%"]
    assert lines[2].split() == ["sky", "50.00", "50.00", "66.67"]
    assert lines[4].split() == ["a", "long", "name", "-", "-", "0.00"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert lines[-1] == "mIoU 50.00 %   pixel accuracy 66.67 %   mean accuracy 75.00 %"
