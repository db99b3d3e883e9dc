# SPDX-License-Identifier: MIT
"""Small cases of every CUDA operator against float64, as functions that raise when they differ.

They need NumPy alone, so that a sanitizer's process starts in no time.
"""

import itertools

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels


def check_confusion_matrix(kernels: Kernels) -> None:
    random = np.random.default_rng(0)
    dtypes = itertools.product(("uint8", "int32", "int64"), repeat=2)
    # The last does not fit into shared memory of any GPU; an odd count leaves a tail.
    sizes = [(1, 1, 0), (0, 3, 0), (4099, 19, 0), (9001, 19, 1), (500, 150, 0), (700, 250, 0)]
    cases = [("uint8", "uint8", *size) for size in sizes]
    cases += [(*pair, 1025, 7, offset) for pair in dtypes for offset in (0, 1)]
    for prediction_dtype, target_dtype, count, classes, offset in cases:
        runs = random.integers(0, classes, count // 5 + 1).repeat(5)[:count]
        target = np.where(random.random(count) < 0.2, 255, runs).astype(target_dtype)
        prediction = np.where(random.random(count) < 0.3, 0, runs).astype(prediction_dtype)
        matrix, invalid = count_labels(kernels, prediction, target, classes, offset)
        valid = target != 255
        expected = np.zeros((classes, classes), np.int64)
        np.add.at(expected, (target[valid].astype(int), prediction[valid].astype(int)), 1)
        assert np.array_equal(matrix, expected)
        assert invalid.tolist() == [0, 0]

    prediction = np.zeros(3000, np.int32)
    target = np.full(3000, 255, np.int64)
    target[[1500, 2500]] = 19, -1
    prediction[[1700, 2999]] = 300, 19
    target[1700] = 3
    matrix, invalid = count_labels(kernels, prediction, target, 19, 0)
    assert invalid.tolist() == [3, 1500]
    assert matrix.sum() == 0


def count_labels(
    kernels: Kernels, prediction: np.ndarray, target: np.ndarray, classes: int, offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """Both maps start `offset` elements after an aligned address."""
    matrix = np.zeros((classes, classes), np.int64)
    invalid = np.zeros(2, np.int64)
    kernels.call(
        "confusion_matrix",
        "confusion_matrix",
        "ConfusionMatrix",
        prediction=np.concatenate([prediction[:offset], prediction])[offset:],
        prediction_dtype=prediction.dtype.name,
        target=np.concatenate([target[:offset], target])[offset:],
        target_dtype=target.dtype.name,
        count=len(target),
        num_classes=classes,
        ignore_index=255,
        matrix=matrix,
        invalid=invalid,
    )
    return matrix, invalid


def check_upsample_argmax(kernels: Kernels) -> None:
    random = np.random.default_rng(0)
    shapes = [  # [B, K, h, w] and the output's size
        ((1, 1, 1, 1), (1, 1)),
        ((2, 19, 1, 1), (5, 7)),
        ((1, 19, 5, 7), (33, 49)),
        ((1, 2, 5, 7), (5, 7)),
        ((3, 5, 4, 3), (31, 150)),
        ((1, 3, 13, 11), (4, 3)),
        ((1, 257, 3, 2), (9, 8)),
        ((0, 3, 2, 2), (8, 8)),
    ]
    for (shape, size), align_corners in itertools.product(shapes, (True, False)):
        for dtype, channels_last in (("float32", True), ("bfloat16", False), ("float16", True)):
            logits = random.normal(size=shape) * 3
            compare_argmax(kernels, logits, size, align_corners, dtype, channels_last)

    ties = np.zeros((1, 4, 3, 3))
    labels, confidence = upsample(kernels, ties, (9, 9), True, "float32", False, True)
    assert (labels == 0).all() and (confidence == 0.25).all()
    for special in (np.nan, np.inf, -np.inf):
        logits = random.normal(size=(1, 4, 3, 3))
        logits[0, 2] = special
        labels, confidence = upsample(kernels, logits, (9, 9), True, "float32", False, True)
        inside = (slice(None), slice(1, 4), slice(1, 4))  # no weight is 0, so eager has no 0 × inf
        if special == -np.inf:
            others = arrays.upsampled(np.delete(logits, 2, 1), (9, 9), True)
            share = np.exp(others.max(1) - arrays.log_sum_exp(others))
            assert (labels[inside] != 2).all()
            assert np.allclose(confidence[inside], share[inside], rtol=1e-5)
        else:
            assert (labels[inside] == 2).all() and np.isnan(confidence[inside]).all()


def compare_argmax(kernels, logits, size, align_corners, dtype, channels_last):
    stored = arrays.encode(logits, dtype)
    labels, confidence = upsample(
        kernels, logits, size, align_corners, dtype, channels_last, with_confidence=True
    )
    only_labels, _ = upsample(
        kernels, logits, size, align_corners, dtype, channels_last, with_confidence=False
    )
    assert np.array_equal(labels, only_labels)
    if labels.size == 0:
        return
    exact = arrays.upsampled(arrays.decode(stored, dtype), size, align_corners)
    chosen = np.take_along_axis(exact, labels[:, None].astype(int), 1)[:, 0]
    # A label is wrong unless its value is the greatest to within float32 rounding.
    assert (exact.max(1) - chosen <= 1e-5).all()
    expected = np.exp(exact.max(1) - arrays.log_sum_exp(exact))
    # K float32 additions and exponentials, each good to some 1e-6.
    assert np.abs(confidence - expected).max() <= 2e-5


def upsample(kernels, logits, size, align_corners, dtype, channels_last, with_confidence):
    batch, classes, height, width = logits.shape
    stored = arrays.laid_out(arrays.encode(logits, dtype), channels_last)
    shape = (batch, *size)
    labels = np.full(shape, -1 if classes > 256 else 255, np.int64 if classes > 256 else np.uint8)
    confidence = np.full(shape, 7, np.float32)
    kernels.call(
        "upsample_argmax",
        "upsample_argmax",
        "UpsampleArgmax",
        logits=stored,
        dtype=dtype,
        batch=batch,
        classes=classes,
        in_height=height,
        in_width=width,
        **arrays.strides(stored),
        out_height=size[0],
        out_width=size[1],
        align_corners=align_corners,
        labels=labels,
        confidence=confidence if with_confidence else None,
    )
    return labels, confidence
