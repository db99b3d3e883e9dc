# SPDX-License-Identifier: MIT
"""Cases and mutants of `confusion_matrix`."""

import itertools

import numpy as np

from tests.emulator.kernels import Kernels
from tests.emulator.mutants import ASAN, MISALIGNED, RACE_READ, RACE_WRITE, UNWRITTEN, Mutant


def check(kernels: Kernels) -> None:
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
        ConfusionMatrix={
            "prediction": np.concatenate([prediction[:offset], prediction])[offset:],
            "prediction_dtype": prediction.dtype.name,
            "target": np.concatenate([target[:offset], target])[offset:],
            "target_dtype": target.dtype.name,
            "count": len(target),
            "num_classes": classes,
            "ignore_index": 255,
            "matrix": matrix,
            "invalid": invalid,
        },
    )
    return matrix, invalid


MUTANTS = [
    Mutant(
        "no barrier after clearing",
        "race",
        RACE_WRITE,
        "  sync_block();\n  const int64_t stride",
        "  const int64_t stride",
    ),
    Mutant(
        "no barrier before merging",
        "race",
        RACE_READ,
        "  sync_block();\n  for (int cell",
        "  for (int cell",
    ),
    Mutant(
        "counters not cleared",
        "race",
        UNWRITTEN,
        "    counts[cell] = 0;",
        "",
    ),
    Mutant(
        "counters without atomics",
        "race",
        RACE_WRITE,
        "atomic_add(&counts[cell], length);",
        "counts[cell] += length;",
    ),
    Mutant(
        "tail read in full",
        "asan",
        ASAN,
        "if (call.aligned && size == pixels)",
        "if (call.aligned)",
    ),
    Mutant(
        "vector loads from any address",
        "asan",
        MISALIGNED,
        "addresses % 16 == 0",
        "addresses != 0",
    ),
    Mutant(
        "more shared memory than there is",
        "plain",
        "the architecture has",
        "fits ? (int)cells : 0",
        "(int)cells + 0 * fits",
    ),
]
