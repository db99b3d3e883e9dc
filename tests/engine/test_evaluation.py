# SPDX-License-Identifier: MIT
"""Evaluation over a small data set."""

from types import SimpleNamespace

import numpy as np
import pytest

from openseg.engine.evaluation import evaluate
from openseg.engine.inference import Inference
from openseg.errors import DataError
from tests.engine.pictures import Samples, Seer

INFO = SimpleNamespace(
    name="toys", classes=("a", "b", "c"), ignore_index=255, num_classes=3, palette=()
)


class Toys(Samples):
    """Images of several sizes whose channels are the class scores, so that truth is known."""

    info = INFO

    def __init__(self, length=5, wrong=0, missing=None, value=None):
        self.samples = []
        for index in range(length):
            rng = np.random.default_rng(index)
            label = rng.integers(0, 3, (6 + index, 9)).astype(np.uint8)
            image = np.eye(3, dtype=np.uint8)[label] * 255
            label[0, :wrong] = (label[0, :wrong] + 1) % 3
            label[1, 0] = 255 if value is None else value
            name = f"toy{index}"
            self.samples.append(SimpleNamespace(image=image, label=label, name=name))
        if missing is not None:
            self.samples[missing].label = None


def transform(sample):
    return np.moveaxis(sample.image, -1, 0).astype(np.float32), sample.label


@pytest.mark.parametrize("workers", [0, 2])
def test_a_prediction_equal_to_the_label_is_perfect(workers):
    calls = []
    metrics = evaluate(
        Inference(Seer()),
        Toys(),
        transform,
        3,
        workers=workers,
        progress=lambda *c: calls.append(c),
    )
    assert metrics.mean_iou == metrics.pixel_accuracy == metrics.mean_accuracy == 1
    assert metrics.confusion.sum() == sum(9 * (6 + i) - 1 for i in range(5))
    assert metrics.class_names == INFO.classes
    assert calls == [(done, 5) for done in range(1, 6)]


def test_wrong_pixels_are_counted_once():
    metrics = evaluate(Inference(Seer()), Toys(wrong=2), transform)
    total = metrics.confusion.sum().item()
    assert metrics.confusion.diagonal().sum() == total - 2 * 5


def test_labels_that_keep_the_original_size_when_the_image_is_resized():
    def enlarged(sample):
        image, label = transform(sample)
        return image.repeat(3, axis=1).repeat(3, axis=2), label

    assert evaluate(Inference(Seer()), Toys(), enlarged).pixel_accuracy > 0.99


@pytest.mark.parametrize("workers", [0, 1])
def test_a_missing_label_is_named_without_a_traceback_of_the_worker(workers):
    with pytest.raises(DataError) as caught:
        evaluate(Inference(Seer()), Toys(missing=2), transform, workers=workers)
    assert str(caught.value) == "toy2: has no label map; evaluation needs one per image"


def test_a_label_that_is_no_class_is_named_with_its_image():
    with pytest.raises(DataError, match=r"toy0: .*7"):
        evaluate(Inference(Seer()), Toys(value=7), transform)


def test_another_number_of_classes_is_an_error_before_any_image_is_read():
    with pytest.raises(DataError, match=r"19 classes .*'toys' has 3 \(a, b, c\)"):
        evaluate(Inference(Seer()), SimpleNamespace(info=INFO), transform, 19)
