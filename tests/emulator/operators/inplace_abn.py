# SPDX-License-Identifier: MIT
"""Cases and mutants of `inplace_abn`."""

import itertools

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels
from tests.emulator.mutants import ASAN, RACE_WRITE, VALUES, Mutant

EPS = 1e-5
ACTIVATIONS = {"leaky_relu": 0, "relu": 1, "elu": 2}
# [B, C, H, W]: one pixel, tails of vectors and slabs, two groups of channels, none
SHAPES = [(3, 2, 1, 1), (2, 21, 5, 7), (1, 3, 17, 16), (1, 40, 3, 3), (1, 264, 1, 2), (0, 4, 3, 3)]


def check(kernels: Kernels) -> None:
    kinds = itertools.cycle(
        itertools.product(arrays.FLOATING, ACTIVATIONS, (True, False), (True, False))
    )
    for shape, channels_last in itertools.product(SHAPES, (True, False)):
        for _ in range(2):
            # Every fifth of 36 kinds, so that each value meets many shapes.
            next(itertools.islice(kinds, 4, None))
            kind = next(kinds)
            compare(kernels, shape, channels_last, *kind)
            if not channels_last:
                compare(kernels, shape, channels_last, *kind, aside=True)
    # Several slabs of one image, where a thread has many pixels.
    compare(kernels, (1, 1, 67, 67), False, "bfloat16", "leaky_relu", True, False)
    compare(kernels, (1, 8, 20, 40), True, "bfloat16", "elu", True, False)
    # Several vectors for a thread of a block that has a channel, and channels that fit into the
    # shared memory of some architectures: z on 8.0, z and its gradient on 9.0.
    compare(kernels, (2, 2, 47, 47), False, "bfloat16", "elu", True, False)
    compare(kernels, (1, 2, 160, 160), False, "float32", "leaky_relu", True, False)
    overwrite(kernels)
    # Ten steps of float32, and a first value that is no measure of the others.
    x = 1e4 + 1e-2 * np.random.default_rng(0).normal(size=(1, 2, 70, 60))
    x[0, :, 0, 0] += 3
    for channels in (1, 2):  # one is too few for a block to take a channel
        call = Call(x[:, :channels].astype(np.float32), "float32", False, "leaky_relu", 1.0)
        _, statistics = call.forward(kernels, None)
        exact = call.x.astype(np.float64)
        expected = exact.mean((0, 2, 3)), exact.var((0, 2, 3)), np.full(channels, 70 * 60)
        assert np.allclose(statistics, expected, rtol=[[1e-9], [1e-3], [0]])
    # ELU that has run out of digits, and an output that is further out than any value.
    z = np.array([-1.0, 1e30, 0.5, -0.5]).reshape(1, 1, 2, 2)
    call = Call(z, "bfloat16", False, "elu", 1.0)
    statistics = np.array([[0.0], [1.0], [4.0]])
    for found in call.backward(kernels, np.ones(z.shape), z, statistics, kept_input=False):
        assert np.isfinite(found).all()


class Call:
    """One map and its channels' gain and bias; results may lie one element aside of the map."""

    def __init__(self, x, dtype, channels_last, activation, parameter, seed=0, aside=False):
        random = np.random.default_rng(seed)
        self.dtype, self.channels_last, self.aside = dtype, channels_last, aside
        self.x = self.stored(x)
        self.channels = x.shape[1]
        gain, bias = random.random(self.channels) + 0.3, random.normal(size=self.channels)
        self.affine = np.stack([gain, bias]).astype(np.float32)
        self.function = {
            "affine": self.affine,
            "eps": EPS,
            "activation": ACTIVATIONS[activation],
            "parameter": parameter,
        }

    def stored(self, values):
        return arrays.laid_out(arrays.encode(values, self.dtype), self.channels_last)

    def map(self, array):
        return arrays.map_of(array, self.dtype)

    def result(self):
        array = arrays.filled_with_nan(self.x.shape, self.dtype, self.channels_last)
        if not self.aside:
            return array
        return np.append(array.ravel()[:1], array)[1:].reshape(array.shape)

    def forward(self, kernels, known, z=None):
        """The result, and the statistics."""
        z = self.result() if z is None else z
        statistics = np.full((3, self.channels), np.nan)
        call = {"x": self.map(self.x), "z": self.map(z), "known": known, **self.function}
        call["statistics"] = statistics
        kernels.call("inplace_abn", "inplace_abn", InPlaceAbn=call)
        return arrays.decode(z, self.dtype), statistics

    def backward(self, kernels, grad, kept, statistics, kept_input, known=None):
        """The gradient of x, the sums, and those that are found without it."""
        grad_x, sums, call = self.whole_backward(kernels, grad, kept, statistics, kept_input, known)
        sums_alone = np.full((2, self.channels), np.nan)
        call |= {"sums": sums_alone, "known": None}
        kernels.call("inplace_abn_backward_sums", "inplace_abn", InPlaceAbnBackward=call)
        return arrays.decode(grad_x, self.dtype), sums, sums_alone

    def whole_backward(self, kernels, grad, kept, statistics, kept_input, known=None):
        """The gradient of x as it is stored, the sums, and the fields of the call."""
        grad_x = self.result()
        sums = np.full((2, self.channels), np.nan)
        grad, kept = self.stored(grad), self.stored(kept)
        call = {
            "grad_z": self.map(grad),
            "kept": self.map(kept),
            "kept_input": kept_input,
            "statistics": statistics,
            **self.function,
            "grad_x": self.map(grad_x),
            "known": known,
            "sums": sums,
        }
        kernels.call("inplace_abn_backward", "inplace_abn", InPlaceAbnBackward=call)
        return grad_x, sums, call


def overwrite(kernels):
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 7))
    call = Call(x, "float16", False, "leaky_relu", 0.25)
    z, statistics = call.forward(kernels, None)
    same_z, same_statistics = call.forward(kernels, None, z=call.x)
    assert np.array_equal(z, same_z)
    assert np.array_equal(statistics, same_statistics)


def compare(kernels, shape, channels_last, dtype, activation, training, keep_input, aside=False):
    random = np.random.default_rng(sum(shape))
    keep_input = keep_input or activation == "relu"
    parameter = {"leaky_relu": 0.25, "relu": 0.0, "elu": 1.5}[activation]
    offset = random.normal(size=(shape[1], 1, 1)) * 3
    x = random.normal(size=shape) * (1 + random.random((shape[1], 1, 1))) + offset
    call = Call(x, dtype, channels_last, activation, parameter, aside=aside)
    exact_x = arrays.decode(call.x, dtype)
    axes, count = (0, 2, 3), shape[0] * shape[2] * shape[3]
    known = (
        None if training else np.stack([*random.random((2, shape[1])), np.full(shape[1], np.inf)])
    )
    z, statistics = call.forward(kernels, known)
    if count == 0:
        assert np.array_equal(statistics, np.zeros_like(statistics) if training else known)
        return
    expected = known
    if training:
        moments = exact_x.mean(axes), exact_x.var(axes)
        expected = np.stack([*moments, np.full(shape[1], count)])
        # Some 30 float32 additions, on values that are shifted by one of them.
        assert np.allclose(statistics, expected, rtol=1e-5, atol=1e-6)
    else:
        assert np.array_equal(statistics, known)
    mean, variance, number = expected[:, :, None, None]
    gain, bias = call.affine.astype(np.float64)[:, :, None, None]
    y = (exact_x - mean) / np.sqrt(variance + EPS) * gain + bias
    exact_z, slope = activated(y, activation, parameter)
    # A dozen float32 operations, on values below 20, and rounding.
    assert (np.abs(z - exact_z) <= arrays.rounding(exact_z, dtype) + 2e-5).all()

    grad = arrays.decode(call.stored(random.normal(size=shape)), dtype)
    kept = exact_x if keep_input else z
    if not keep_input:
        y, slope = inverted(z, activation, parameter, dtype)
    centered = y - bias
    if training and not keep_input:
        most = gain * np.sqrt(count - 1)
        centered = np.clip(centered, -most, most)
    dy = grad * slope
    grad_x, *sums = call.backward(kernels, grad, kept, expected, keep_input)
    exact_sums = np.stack([dy.sum(axes), (dy * centered).sum(axes)])
    size = np.abs(dy * centered).sum(axes).max() + np.abs(dy).sum(axes).max()
    assert np.abs(sums - exact_sums).max() <= 1e-5 * size
    twice, same_sums, _ = call.backward(kernels, grad, kept, expected, keep_input, 2 * exact_sums)
    assert np.array_equal(same_sums, 2 * exact_sums)
    for found, factor in ((grad_x, 1), (twice, 2)):
        total, product = factor * exact_sums[:, :, None, None]
        exact = gain * (dy - total / number) - centered * product / (gain * number)
        exact /= np.sqrt(variance + EPS)
        scale = (gain / np.sqrt(variance + EPS) * (1 + np.abs(centered / gain) ** 2)).max()
        error = np.abs(found - exact)
        assert (error <= arrays.rounding(exact, dtype) + 2e-5 * scale).all(), error.max()


def activated(y, activation, parameter):
    """The activation and its derivative."""
    if activation == "elu":
        bounded = np.minimum(y, 0)
        lower = parameter * np.expm1(bounded), parameter * np.exp(bounded)
    else:
        lower = parameter * y, np.full_like(y, parameter)
    return np.where(y > 0, y, lower[0]), np.where(y > 0, 1, lower[1])


def inverted(z, activation, parameter, dtype):
    """What y and the derivative were by an output."""
    step = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
    if activation == "elu":
        lower = np.log1p(np.clip(z / parameter, step - 1, None)), z + parameter
    else:
        lower = z / parameter, np.full_like(z, parameter)
    return np.where(z > 0, z, lower[0]), np.where(z > 0, 1, lower[1])


WHOLE = "inplace_abn/cuda/whole_channels.cu"
MUTANTS = [
    Mutant(
        "sums read before they are there",
        "race",
        RACE_WRITE,
        "  parts[threads + threadIdx.x] = square;\n  sync_block();\n",
        "  parts[threads + threadIdx.x] = square;\n",
    ),
    Mutant(
        "all rows write the sums of a slab",
        "race",
        RACE_WRITE,
        "  if (place.inside && place.row == 0) {\n    float* const sum",
        "  if (place.inside) {\n    float* const sum",
    ),
    Mutant(
        "channels beyond the last",
        "asan",
        ASAN,
        "summed = channel < channels && !call.known",
        "summed = !call.known",
    ),
    Mutant(
        "gradients of pixels beyond the last",
        "asan",
        ASAN,
        "values[0][i] = grads.read(pixel < place.pixels ? pixel : first);",
        "values[0][i] = grads.read(pixel);",
    ),
    Mutant(
        "the last slab counted as a whole one",
        "plain",
        VALUES,
        "left < call.split.slab ? (double)left : (double)call.split.slab",
        "(double)call.split.slab + 0 * left",
    ),
    Mutant(
        "another pixel counted for those beyond the end",
        "plain",
        VALUES,
        "x.read(pixel < place.pixels ? pixel : 0);",
        "x.read(pixel < place.pixels ? pixel : first);",
    ),
    Mutant(
        "slope of the wrong side at an output of zero",
        "plain",
        VALUES,
        "grad *= kept > 0 ? 1.0f : p;",
        "grad *= 1.0f;",
        "inplace_abn/cuda/values.cuh",
    ),
    Mutant(
        "no limit for outputs of few digits",
        "plain",
        VALUES,
        "centered > most ? most : centered < -most ? -most : centered",
        "most > 0 ? centered : 0",
        "inplace_abn/cuda/values.cuh",
    ),
    Mutant(
        "logarithm of zero",
        "plain",
        VALUES,
        "(ratio < lowest ? lowest : ratio)",
        "ratio + 0 * lowest",
        "inplace_abn/cuda/values.cuh",
    ),
    Mutant(
        "numbers of the channels of another block",
        "plain",
        VALUES,
        "group * lanes + pieces % lanes",
        "(int64_t)blockIdx.y * lanes + pieces % lanes",
        "inplace_abn/cuda/values.cuh",
    ),
    Mutant(
        "too little shared memory",
        "plain",
        "more shared memory is taken",
        "found_bytes(recovery_kinds, split.split, width) + tree_bytes(width)",
        "tree_bytes(width)",
    ),
    Mutant(
        "sums of warps overwritten while others read them",
        "race",
        RACE_WRITE,
        "block_sum(squares, memory.warps[2])",
        "block_sum(squares, memory.warps[1])",
        WHOLE,
    ),
    Mutant(
        "copies that nothing waits for",
        "plain",
        "copies under way",
        "commit_copies();\n  wait_for_copies<0>();",
        "commit_copies();",
        WHOLE,
    ),
    Mutant(
        "read beyond the ends of a row",
        "asan",
        ASAN,
        "holds(v) ? row_[first_ + v] : T{}",
        "row_[first_ + v]",
        WHOLE,
    ),
    Mutant(
        "write beyond the ends of a row",
        "asan",
        ASAN,
        "if (holds(v)) {",
        "if (pixels_ > 0) {",
        WHOLE,
    ),
    Mutant(
        "what lies beside a row counted in the variance",
        "plain",
        VALUES,
        "chunk.holds(v) ? to_float(x.values[v]) - shift : 0.0f",
        "chunk.holds(0) || true ? to_float(x.values[v]) - shift : 0.0f",
        WHOLE,
    ),
    Mutant(
        "rows that start elsewhere in 16 bytes",
        "plain",
        VALUES,
        "((uintptr_t)one.data - (uintptr_t)other.data) % 16 == 0",
        "one.data != nullptr",
        WHOLE,
    ),
    Mutant(
        "channels larger than shared memory",
        "plain",
        "the architecture has",
        "most = shared_memory_limit();",
        "most = 227 << 10;",
        WHOLE,
    ),
]
