# SPDX-License-Identifier: MIT
"""Cases and mutants of `upsample_argmax`."""

import itertools

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels
from tests.emulator.mutants import ASAN, RACE_WRITE, VALUES, Mutant


def check(kernels: Kernels) -> None:
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

    # Cells whose corners agree in all, in some and in none.
    for align_corners, channels_last in itertools.product((True, False), repeat=2):
        logits = random.normal(size=(2, 5, 2, 9)).repeat(3, 2).repeat(3, 3)
        logits += 0.1 * random.normal(size=logits.shape)
        compare_argmax(kernels, logits, (47, 213), align_corners, "float32", channels_last)
    labels, _ = upsample(
        kernels, np.full((1, 4, 3, 3), np.nan), (9, 9), True, "float32", False, False
    )
    assert (labels == 0).all()
    ties = np.zeros((1, 4, 3, 3))
    labels, confidence = upsample(kernels, ties, (9, 9), True, "float32", False, True)
    assert (labels == 0).all()
    assert (confidence == 0.25).all()
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
            assert (labels[inside] == 2).all()
            assert np.isnan(confidence[inside]).all()


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
    batch, classes = logits.shape[:2]
    stored = arrays.laid_out(arrays.encode(logits, dtype), channels_last)
    shape = (batch, *size)
    label = np.int64(-1) if classes > 256 else np.uint8(255)
    labels, confidence = (arrays.place(np.full(shape, x)) for x in (label, np.float32(7)))
    kernels.call(
        "upsample_argmax",
        "upsample_argmax",
        UpsampleArgmax={
            **arrays.upsampling_of(stored, dtype, size, align_corners),
            "labels": labels,
            "confidence": confidence if with_confidence else None,
        },
    )
    return labels, confidence


MUTANTS = [
    Mutant(
        "one column too many",
        "asan",
        ASAN,
        "column >= call.columns.out",
        "column > call.columns.out",
    ),
    Mutant(
        "a row below the last",
        "asan",
        ASAN,
        "call.rows.next(upper)",
        "(upper + 1)",
    ),
    Mutant(
        "rows of the next block",
        "race",
        RACE_WRITE,
        "first + row >= end",
        "first + row >= call.rows.out",
    ),
    Mutant(
        "no barrier before corners are read",
        "race",
        RACE_WRITE,
        "  sync_block();\n",
        "",
    ),
    Mutant(
        "three corners for four",
        "plain",
        VALUES,
        " && label == below[1]",
        "",
    ),
    Mutant(
        "sum not cleared",
        "plain",
        VALUES,
        "    winners.sum[row] = 0;\n",
        "",
    ),
    Mutant(
        "last class of equal ones",
        "plain",
        VALUES,
        "value > best ||",
        "value >= best ||",
    ),
]
