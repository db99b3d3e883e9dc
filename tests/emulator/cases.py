# SPDX-License-Identifier: MIT
"""Small cases of every CUDA operator against float64, as functions that raise when they differ.

They need NumPy alone, so that a sanitizer's process starts in no time.
"""

import ctypes
import itertools

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels


def check_primitives(kernels: Kernels) -> None:
    random = np.random.default_rng(0)
    for dtype, valid in itertools.product(("bfloat16", "float16"), (32, 24)):
        a, b = random.integers(-8, 9, (16, valid)), random.integers(-8, 9, (32, 8))
        c = np.full((16, 8), np.nan, np.float32)
        stored = [arrays.encode(x.astype(np.float64), dtype) for x in (a, b)]
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (*stored, c)]
        kernels.call_plainly("product", *pointers, valid, dtype == "bfloat16")
        assert np.array_equal(c, a @ b[:valid])


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
    batch, classes, height, width = logits.shape
    stored = arrays.laid_out(arrays.encode(logits, dtype), channels_last)
    shape = (batch, *size)
    labels = np.full(shape, -1 if classes > 256 else 255, np.int64 if classes > 256 else np.uint8)
    confidence = np.full(shape, 7, np.float32)
    kernels.call(
        "upsample_argmax",
        "upsample_argmax",
        UpsampleArgmax=dict(
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
        ),
    )
    return labels, confidence


def check_upsample_cross_entropy(kernels: Kernels) -> None:
    shapes = [  # [B, K, h, w] and the size of the target
        ((1, 1, 1, 1), (1, 1)),
        ((2, 19, 1, 1), (5, 150)),
        ((1, 19, 5, 7), (33, 49)),
        ((1, 2, 5, 7), (5, 7)),
        ((2, 9, 3, 33), (17, 257)),
        ((1, 3, 13, 11), (4, 3)),
        ((0, 3, 2, 2), (8, 8)),
    ]
    kinds = itertools.cycle(
        itertools.product(arrays.FLOATING, (True, False), ("int64", "uint8"), (None, 1), (0, 0.1))
    )
    for (shape, size), align_corners in itertools.product(shapes, (True, False)):
        # Every seventh of 48 kinds, so that each value meets many shapes.
        dtype, channels_last, target_dtype, weight_seed, smoothing = next(kinds)
        next(itertools.islice(kinds, 5, None))
        compare_cross_entropy(
            kernels, shape, size, align_corners, dtype, channels_last, target_dtype, weight_seed,
            smoothing,
        )  # fmt: skip
    call = CrossEntropyCall(np.zeros((1, 3, 2, 2)), (4, 4), True, "float32", False)
    target = np.full((1, 4, 4), 255, np.uint8)
    assert call.forward(kernels, target, None, 0.1)[1].tolist() == [0, 0, 0, 0]
    assert (call.backward(kernels, np.ones(1, np.float32)) == 0).all()
    # Probabilities that are 1 to all digits, next to pixels that do not count.
    call = CrossEntropyCall(np.full((1, 1, 2, 2), 1e4), (4, 4), True, "float32", False)
    target[0, :, :2] = 0
    assert (call.forward(kernels, target, None, 0)[0] == 0).all()
    assert (call.backward(kernels, np.ones(1, np.float32)) == 0).all()
    # Labels out of range are counted, and have neither loss nor gradient.
    target[0, 1, 1] = target[0, 3, 2] = 3
    assert call.forward(kernels, target, None, 0.1)[1].tolist() == [0, 8 - 1, 2, 5]
    assert np.isinf(call.lse[target == 3]).all()
    # An infinite logit does not pass for the mark of a pixel that does not count.
    logits = np.stack([np.zeros((1, 2, 2)), np.full((1, 2, 2), np.inf)], 1)
    call = CrossEntropyCall(logits, (4, 4), True, "float32", False)
    loss, totals = call.forward(kernels, target, None, 0)
    assert np.array_equal(np.isnan(loss), target == 0)
    assert np.isnan(totals[0])


class CrossEntropyCall:
    def __init__(self, logits, size, align_corners, dtype, channels_last):
        batch, classes, height, width = logits.shape
        self.logits = arrays.laid_out(arrays.encode(logits, dtype), channels_last)
        self.dtype = dtype
        self.channels_last = channels_last
        self.pixels = (batch, *size)
        self.lse = np.full(self.pixels, np.nan, np.float32)
        self.fields = dict(
            logits=self.logits,
            dtype=dtype,
            batch=batch,
            classes=classes,
            in_height=height,
            in_width=width,
            **arrays.strides(self.logits),
            out_height=size[0],
            out_width=size[1],
            align_corners=align_corners,
            ignore_index=255,
        )

    def forward(self, kernels, target, weight, smoothing):
        """The losses, and the four totals."""
        self.fields |= {
            "target": target,
            "target_dtype": target.dtype.name,
            "weight": weight,
            "label_smoothing": smoothing,
        }
        loss = np.full(self.pixels, np.nan, np.float32)
        totals = np.full(4, np.nan)
        blocks = self.pixels[0] * self.fields["in_height"] * -(-self.pixels[2] // 128)
        result = {
            "loss": loss,
            "lse": self.lse,
            "partials": np.full((2, blocks), np.nan, np.float32),
            "invalid": np.zeros(2, np.int64),
            "totals": totals,
        }
        self._call(kernels, "upsample_cross_entropy", CrossEntropyForwardCuda=result)
        return loss, totals

    def backward(self, kernels, scale, channels_last=None):
        """The gradient, in the memory format of the logits where no other is asked for."""
        channels_last = self.channels_last if channels_last is None else channels_last
        grad = arrays.filled_with_nan(self.logits.shape, self.dtype, channels_last)
        result = dict(
            lse=self.lse, scale=scale, one_scale=scale.size == 1, grad=grad, **arrays.strides(grad)
        )
        self._call(kernels, "upsample_cross_entropy_backward", CrossEntropyBackward=result)
        return arrays.decode(grad, self.dtype)

    def _call(self, kernels, launcher, **result):
        operator = "upsample_cross_entropy"
        kernels.call(launcher, operator, UpsampleCrossEntropy=self.fields, **result)


def compare_cross_entropy(
    kernels, shape, size, align_corners, dtype, channels_last, target_dtype, weight_seed, smoothing
):
    random = np.random.default_rng(0)
    classes = shape[1]
    call = CrossEntropyCall(
        random.normal(size=shape) * 3, size, align_corners, dtype, channels_last
    )
    target = random.integers(0, classes, call.pixels)
    target = np.where(random.random(call.pixels) < 0.2, 255, target).astype(target_dtype)
    weight = None if weight_seed is None else random.random(classes).astype(np.float32)
    loss, totals = call.forward(kernels, target, weight, smoothing)
    grad_loss = random.random(call.pixels).astype(np.float32)
    per_pixel = call.backward(kernels, grad_loss)
    for_all = call.backward(kernels, np.full(1, 0.5, np.float32), not channels_last)

    if loss.size == 0:
        assert totals.tolist() == [0, 0, 0, 0]
        return
    valid = target != 255
    assert np.array_equal(np.isinf(call.lse), ~valid)
    label = np.where(valid, target, 0).astype(int)[:, None]
    weights = np.ones(classes) if weight is None else weight.astype(np.float64)
    # The weight of -log p of each class, at each pixel.
    shares = np.broadcast_to(
        (smoothing / classes * weights)[:, None, None], (len(label), classes, *size)
    )
    shares = shares.copy()
    picked = weights[label] * (1 - smoothing)
    np.put_along_axis(shares, label, np.take_along_axis(shares, label, 1) + picked, 1)
    shares *= valid[:, None]

    logits = arrays.decode(call.logits, dtype)
    values = arrays.upsampled(logits, size, align_corners)
    log_p = values - arrays.log_sum_exp(values)[:, None]
    expected = -(shares * log_p).sum(1)
    # Some 10 float32 operations for each class, on values below 20.
    assert np.abs(loss - expected).max() <= 2e-5
    divisor = (weights[label][:, 0] * valid).sum()
    assert np.allclose(totals, [expected.sum(), divisor, 0, 0], rtol=1e-5)
    grad_values = np.exp(log_p) * shares.sum(1, keepdims=True) - shares
    rows = arrays.upsampling(shape[2], size[0], align_corners)
    columns = arrays.upsampling(shape[3], size[1], align_corners)
    for grads, scale in ((per_pixel, grad_loss[:, None]), (for_all, 0.5)):
        exact = np.einsum("yh,bkyx,xw->bkhw", rows, grad_values * scale, columns, optimize=True)
        slack = arrays.rounding(exact, dtype) + 1e-5 * np.abs(exact).max() + 1e-7
        error = np.abs(grads - exact)
        assert (error <= slack).all(), f"{dtype}, {shape} to {size}: error {error.max()}"
