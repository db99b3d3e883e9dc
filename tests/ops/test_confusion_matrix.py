# SPDX-License-Identifier: MIT
"""confusion_matrix: exact against numpy, for every pair of dtypes, and its errors."""

import importlib
import itertools

import numpy as np
import pytest
import torch

from openseg import _ext
from openseg.ops import confusion_matrix

needs_kernels = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))
BACKENDS = ("reference", pytest.param("cpp", marks=needs_kernels))
DTYPES = (torch.uint8, torch.int32, torch.int64)


def label_maps(shape, classes, seed=0, ignored=255):
    """Prediction and target: constant runs and noise, a tenth of the target ignored."""
    rng = np.random.default_rng(seed)
    count = int(np.prod(shape))
    target = np.repeat(rng.integers(0, classes, 1 + count // 100), 100)[:count]
    prediction = np.where(rng.random(count) < 0.1, rng.integers(0, classes, count), target)
    target = np.where(rng.random(count) < 0.1, ignored, target)
    return prediction.reshape(shape), target.reshape(shape)


def counted(prediction, target, classes, ignored=255):
    matrix = np.zeros((classes, classes), np.int64)
    kept = target != ignored
    np.add.at(matrix, (target[kept], prediction[kept]), 1)
    return torch.from_numpy(matrix)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (65, 65), (3, 97, 131), (2, 3, 0), (64,), (100_003,)])
@pytest.mark.parametrize("classes", [1, 2, 19, 150])
def test_as_numpy(backend, shape, classes):
    prediction, target = label_maps(shape, classes)
    matrix = confusion_matrix(
        torch.from_numpy(prediction), torch.from_numpy(target), classes, backend=backend
    )
    assert torch.equal(matrix, counted(prediction, target, classes))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("first", "second"), list(itertools.product(DTYPES, DTYPES)))
def test_numpy_dtypes(backend, first, second):
    prediction, target = label_maps((33, 65), 19)
    matrix = confusion_matrix(
        torch.from_numpy(prediction).to(first),
        torch.from_numpy(target).to(second),
        19,
        backend=backend,
    )
    assert torch.equal(matrix, counted(prediction, target, 19))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("classes", "ignored"), [(300, -1), (256, 255), (19, 3), (19, 2**40)])
def test_numpy_ignore_index(backend, classes, ignored):
    """Ignored may be negative, a class, or a value that 32 bits cannot hold."""
    prediction, target = label_maps((97, 101), classes, ignored=ignored)
    matrix = confusion_matrix(
        torch.from_numpy(prediction), torch.from_numpy(target), classes, ignored, backend=backend
    )
    assert torch.equal(matrix, counted(prediction, target, classes, ignored))


@pytest.mark.parametrize("backend", BACKENDS)
def test_ignored_pixels_may_predict_anything(backend):
    prediction, target = torch.tensor([200, 1]), torch.tensor([255, 1])
    assert confusion_matrix(prediction, target, 2, backend=backend).tolist() == [[0, 0], [0, 1]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_not_contiguous(backend):
    prediction, target = map(torch.from_numpy, label_maps((64, 90), 5))
    matrix = confusion_matrix(prediction.t(), target.t(), 5, backend=backend)
    assert torch.equal(matrix, confusion_matrix(prediction, target, 5, backend="reference"))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [19, -1, 2**32 + 3])
def test_values_out_of_range_are_named(backend, value):
    good = torch.zeros(100_000, dtype=torch.int64)
    bad = good.clone()
    bad[[70_001, 99_999]] = value
    with pytest.raises(
        ValueError, match=rf"target has the value {value} at element 70001.*; 2 pix"
    ):
        confusion_matrix(good, bad, 19, backend=backend)
    with pytest.raises(ValueError, match=rf"prediction has the value {value} at element 70001"):
        confusion_matrix(bad, good, 19, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_first_element_out_of_range(backend):
    with pytest.raises(ValueError, match="target has the value 9 at element 0"):
        confusion_matrix(torch.tensor([1]), torch.tensor([9]), 2, backend=backend)


@needs_kernels
def test_threads_are_equal():
    prediction, target = map(torch.from_numpy, label_maps((512, 513), 19))
    before = torch.get_num_threads()
    try:
        matrices = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            matrices.append(confusion_matrix(prediction, target, 19, backend="cpp"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*matrices)


@needs_kernels
def test_opcheck():
    prediction, target = map(torch.from_numpy, label_maps((9, 10), 4))
    torch.library.opcheck(
        torch.ops.openseg.confusion_matrix.default, (prediction, target.int(), 4, 255)
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile(backend):
    @torch.compile(fullgraph=True, backend="aot_eager")
    def count(prediction, target):
        return confusion_matrix(prediction, target, 4, backend=backend)

    prediction, target = map(torch.from_numpy, label_maps((9, 10), 4))
    assert torch.equal(count(prediction, target), counted(prediction.numpy(), target.numpy(), 4))
    with pytest.raises(RuntimeError, match="a label is out of range"):
        count(prediction, target + 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_export(backend):
    class Metric(torch.nn.Module):
        def forward(self, prediction, target):
            return confusion_matrix(prediction, target, 4, backend=backend)

    prediction, target = map(torch.from_numpy, label_maps((9, 10), 4))
    exported = torch.export.export(Metric(), (prediction, target)).module()
    assert torch.equal(exported(prediction, target), Metric()(prediction, target))


def test_errors_name_the_argument():
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(TypeError, match=r"prediction must be .* got torch\.float32"):
        confusion_matrix(labels.float(), labels, 2)
    with pytest.raises(ValueError, match=r"\(4,\) on cpu and \(3,\) on cpu"):
        confusion_matrix(labels, labels[:3], 2)
    with pytest.raises(ValueError, match="num_classes must be positive, got 0"):
        confusion_matrix(labels, labels, 0)


@needs_kernels
def test_more_classes_than_kernels_number_are_counted_by_the_reference(monkeypatch):
    api = importlib.import_module("openseg.ops.confusion_matrix.api")
    monkeypatch.setattr(api, "_MOST_CLASSES", 4)
    labels = torch.tensor([0, 4, 4])
    assert confusion_matrix(labels, labels, 5).trace() == 3
    with pytest.raises(RuntimeError, match="serves 4 classes at most, got 5"):
        confusion_matrix(labels, labels, 5, backend="cpp")
