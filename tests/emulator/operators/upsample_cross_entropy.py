# SPDX-License-Identifier: MIT
"""Cases and mutants of `upsample_cross_entropy`."""

import itertools

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels
from tests.emulator.mutants import ASAN, RACE_WRITE, VALUES, Mutant


def check(kernels: Kernels) -> None:
    shapes = [  # [B, K, h, w] and the size of the target
        ((1, 1, 1, 1), (1, 1)),
        ((2, 19, 1, 1), (5, 150)),
        ((1, 19, 5, 7), (33, 49)),
        ((1, 2, 5, 7), (5, 7)),
        ((2, 9, 3, 33), (17, 257)),
        ((1, 3, 13, 11), (4, 3)),
        ((1, 3, 2, 3), (120, 20)),
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
    # One logit far from the others, and thus exponentials that are not a sequence; several chunks.
    for raised, align_corners in itertools.product((0, 45, 100, -100), (True, False)):
        compare_cross_entropy(
            kernels, (1, 40, 3, 4), (25, 30), align_corners, "float32", align_corners, "uint8", 1,
            0.1, raised,
        )  # fmt: skip
    call = CrossEntropyCall(np.zeros((1, 3, 2, 2)), (4, 4), True, "float32", False)
    target = np.full((1, 4, 4), 255, np.uint8)
    assert call.forward(kernels, target, None, 0.1)[1].tolist() == [0, 0, 0, 0]
    assert (call.backward(kernels, np.ones(1, np.float32)) == 0).all()
    # Probabilities that are 1 to all digits, next to pixels that do not count.
    call = CrossEntropyCall(np.full((1, 1, 2, 2), 1e4), (4, 4), True, "float32", False)
    target[0, :, :2] = 0
    assert (call.forward(kernels, target, None, 0)[0] == 0).all()
    assert (np.abs(call.backward(kernels, np.ones(1, np.float32))) <= 1e-6).all()
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

    for openseg, (thresh, min_kept) in itertools.product(
        (True, False), ((0.7, 0), (0.7, 50), (0.1, 300), (0.0, 1), (0.0, 0), (0.7, 10**6))
    ):
        compare_mining(kernels, {"openseg": openseg, "thresh": thresh, "min_kept": min_kept})


def compare_mining(kernels, ohem):
    random = np.random.default_rng(0)
    call = CrossEntropyCall(3 * random.normal(size=(2, 5, 4, 6)), (13, 22), True, "float32", False)
    target = random.integers(0, 5, call.pixels).astype(np.uint8)
    target[random.random(call.pixels) < 0.2] = 255
    target[0, 0, 0] = 255  # takes part in "openseg", as class 0 without loss
    weight = random.random(5).astype(np.float32)
    every, _ = call.forward(kernels, target, weight, 0.1)
    loss, totals = call.forward(kernels, target, weight, 0.1, ohem)

    values = arrays.upsampled(arrays.decode(call.logits, "float32"), (13, 22), True)
    label = np.where(target == 255, 0, target).astype(int)
    exact = np.exp(np.take_along_axis(values, label[:, None], 1)[:, 0] - arrays.log_sum_exp(values))
    entered = target != 255
    entered[0, 0, 0] = ohem["openseg"]
    found = call.probability
    assert np.allclose(found, np.where(entered, exact, -1), atol=2e-6)
    ordered = np.sort(found[entered])
    thresh, min_kept = np.float32(ohem["thresh"]), ohem["min_kept"]
    if ohem["openseg"]:
        kept = found < max(thresh, ordered[min(min_kept, len(ordered) - 1)])
    elif min_kept >= len(ordered):
        kept = entered
    else:
        kept = found <= max(thresh, ordered[min_kept - 1] if min_kept > 0 else 0)
    kept = kept & entered
    assert np.array_equal(loss, np.where(kept, every, 0))
    assert np.array_equal(np.isinf(call.lse), ~kept | (target == 255))
    divisor = kept.sum() if ohem["openseg"] else weight[label][kept].sum(dtype=np.float64)
    assert np.allclose(totals, [loss.sum(dtype=np.float64), divisor, 0, 0], rtol=1e-5)


class CrossEntropyCall:
    def __init__(self, logits, size, align_corners, dtype, channels_last):
        self.logits = arrays.laid_out(arrays.encode(logits, dtype), channels_last)
        self.dtype = dtype
        self.channels_last = channels_last
        self.pixels = (len(logits), *size)
        self.lse = arrays.place(np.full(self.pixels, np.nan, np.float32))
        self.probability = arrays.place(np.full(self.pixels, np.nan, np.float32))
        self.fields = {
            **arrays.upsampling_of(self.logits, dtype, size, align_corners),
            "ignore_index": 255,
        }

    def forward(self, kernels, target, weight, smoothing, ohem=None):
        """The losses, and the four totals; `ohem` has the fields of the struct of that name."""
        self.fields |= {
            "target": target,
            "target_dtype": target.dtype.name,
            "weight": weight,
            "label_smoothing": smoothing,
        }
        loss = arrays.place(np.full(self.pixels, np.nan, np.float32))
        totals = np.full(4, np.nan)
        blocks = self.pixels[0] * self.fields["in_height"] * -(-self.pixels[2] // 128)
        result = {
            "loss": loss,
            "lse": self.lse,
            "probability": None if ohem is None else self.probability,
            "first_enters": ohem is not None and ohem["openseg"],
            "counts": np.zeros((3, 1 << 11), np.uint32),
            "partials": np.full((2, blocks), np.nan, np.float32),
            "invalid": np.zeros(2, np.int64),
            "totals": totals,
        }
        structs = {"CrossEntropyForwardCuda": result} | ({"Ohem": ohem} if ohem else {})
        self._call(kernels, "upsample_cross_entropy", *[None] * (ohem is None), **structs)
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

    def _call(self, kernels, launcher, *others, **structs):
        operator = "upsample_cross_entropy"
        kernels.call(launcher, operator, *others, UpsampleCrossEntropy=self.fields, **structs)


def compare_cross_entropy(
    kernels, shape, size, align_corners, dtype, channels_last, target_dtype, weight_seed,
    smoothing, raised=0,
):  # fmt: skip
    random = np.random.default_rng(0)
    classes = shape[1]
    logits = random.normal(size=shape) * 3
    logits[:, -1, 1:] += raised
    call = CrossEntropyCall(logits, size, align_corners, dtype, channels_last)
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
    assert np.abs(loss - expected).max() <= 2e-5 * max(1, abs(raised) / 20)
    divisor = (weights[label][:, 0] * valid).sum()
    assert np.allclose(totals, [expected.sum(), divisor, 0, 0], rtol=1e-5)
    grad_values = np.exp(log_p) * shares.sum(1, keepdims=True) - shares
    rows = arrays.upsampling(shape[2], size[0], align_corners)
    columns = arrays.upsampling(shape[3], size[1], align_corners)
    for grads, scale in ((per_pixel, grad_loss[:, None]), (for_all, 0.5)):
        exact = np.einsum("yh,bkyx,xw->bkhw", rows, grad_values * scale, columns, optimize=True)
        slack = arrays.rounding(exact, dtype) + 1e-5 * np.abs(exact).max() + 1e-7
        arrays.assert_within(grads, exact, slack, (dtype, shape, size))


BACKWARD = "upsample_cross_entropy/cuda/upsample_cross_entropy_backward.cu"
MUTANTS = [
    Mutant(
        "columns overwritten while they are read",
        "race",
        RACE_WRITE,
        "      sync_block();  // the piece before has been read\n",
        "",
        BACKWARD,
    ),
    Mutant(
        "chunk overwritten while it is read",
        "race",
        RACE_WRITE,
        "    sync_block();  // the chunk before has been read\n",
        "",
    ),
    Mutant(
        "steep logits taken for a sequence",
        "plain",
        VALUES,
        "flat &= fabsf(value) <= call.steep;",
        "",
        "upsample_cross_entropy/cuda/pixels.cuh",
    ),
    Mutant(
        "rows of the next sequence",
        "plain",
        VALUES,
        "sequence.begin + row < sequence.end ? tile.scales[slot] : 0.0f",
        "tile.scales[slot]",
        BACKWARD,
    ),
    Mutant(
        "no barrier before the sum across",
        "race",
        RACE_WRITE,
        "      }\n      sync_block();\n      add_across",
        "      }\n      add_across",
        BACKWARD,
    ),
    Mutant(
        "last row shared with a row below",
        "plain",
        VALUES,
        "call.rows.own_share(rows.upper, weight)",
        "(1.0f - weight)",
        BACKWARD,
    ),
    Mutant(
        "ignored pixels with a softmax",
        "plain",
        VALUES,
        "float lse = infinity();",
        "float lse = 0;",
        BACKWARD,
    ),
    Mutant(
        "last label out of range",
        "plain",
        VALUES,
        "~(uint64_t)pixel",
        "(uint64_t)pixel",
    ),
    Mutant(
        "infinity taken for the mark of ignored pixels",
        "plain",
        VALUES,
        "best[row] < infinity() ?",
        "best[row] <= infinity() ?",
    ),
    Mutant(
        "columns beyond the last",
        "asan",
        ASAN,
        "inside && begin + row < rows.end",
        "begin + row < rows.end",
    ),
    Mutant(
        "weights among the losses",
        "race",
        RACE_WRITE,
        "partials[blocks + block]",
        "partials[block + 1]",
    ),
    Mutant(
        "too little shared memory",
        "plain",
        "more shared memory is taken",
        "Shared(measure, call);",
        "",
    ),
    Mutant(
        "more shared memory than there is",
        "plain",
        "the architecture has",
        "shared_bytes() > shared_memory_limit()",
        "false",
        BACKWARD,
    ),
    Mutant(
        "a limit that not all threads know of",
        "plain",
        "no thread can go on",
        "    sync_block();  // the bins have been read\n",
        "",
        "upsample_cross_entropy/cuda/ohem.cu",
    ),
    Mutant(
        "one pixel too few",
        "plain",
        VALUES,
        "ohem.min_kept : ohem.min_kept - 1",
        "ohem.min_kept - 1 : ohem.min_kept - 1",
        "upsample_cross_entropy/cuda/ohem.cu",
    ),
    Mutant(
        "counters that were not cleared",
        "plain",
        VALUES,
        "    counters.bins[bin] = 0;\n",
        "",
        "upsample_cross_entropy/cuda/ohem.cu",
    ),
]
