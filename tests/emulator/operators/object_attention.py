# SPDX-License-Identifier: MIT
"""Cases and mutants of `object_attention`."""

import ctypes

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels
from tests.emulator.mutants import ASAN, RACE_READ, RACE_WRITE, VALUES, Mutant

CASES = [  # B, D, N, K, Dv, dtype of memory or "tfloat32", channels_last
    (1, 1, 1, 1, 1, "float32", True),
    (2, 8, 15, 2, 16, "bfloat16", True),
    (3, 100, 165, 19, 8, "float16", True),  # rows of 200 bytes; many tiles of pixels for a block
    (1, 64, 133, 19, 100, "bfloat16", False),
    (1, 40, 600, 33, 72, "bfloat16", True),  # two tiles for a block, sums in memory
    (1, 264, 37, 7, 260, "bfloat16", True),  # more channels than have sums in registers
    (1, 40, 33, 59, 72, "tfloat32", True),
    (2, 16, 35, 59, 8, "float32", False),
    (2, 32, 71, 19, 64, "float32", True),
    (1, 64, 33, 5, 32, "bfloat16", True),
    (1, 16, 41, 65, 8, "float16", True),
    (1, 72, 230, 150, 64, "bfloat16", True),  # tiles differ among architectures
    (1, 8, 20, 150, 33, "float32", True),
    (1, 8, 40, 176, 16, "bfloat16", False),
    (1, 8, 33, 177, 16, "bfloat16", True),
    (1, 8, 17, 256, 16, "float16", True),
    (1, 4, 3, 256, 5, "float32", False),
    (0, 8, 5, 3, 8, "float32", True),
]
EPSILON = {"float32": 2.0**-20, "tfloat32": 2.0**-10, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def check(kernels: Kernels) -> None:
    for case in CASES:
        compare(kernels, *case)
    compare(kernels, 1, 8, 20, 3, 8, "float16", True, sharpness=300)
    # Equal scores: the plain average.
    same = Attention(np.zeros((1, 8, 5)), np.ones((1, 8, 7)), np.arange(56.0).reshape(1, 8, 7),
                     np.zeros((1, 8, 5)), "float32", True)  # fmt: skip
    assert np.allclose(same.forward(kernels), same.value.mean(2)[..., None], rtol=1e-6)


class Attention:
    """query [B, D, N], key [B, D, K], value and the gradient of the result, rounded to a dtype."""

    def __init__(self, query, key, value, grad, products, channels_last):
        self.allow_tf32 = products == "tfloat32"
        self.dtype = "float32" if self.allow_tf32 else products
        self.channels_last = channels_last
        self.scale = query.shape[1] ** -0.5
        # Region vectors lie as [B, K, D], whatever the maps.
        self.stored = [
            arrays.as_map(values, self.dtype, last)
            for values, last in ((query, channels_last), (key, True), (value, True),
                                 (grad, channels_last))
        ]  # fmt: skip
        self.query, self.key, self.value, self.grad = (
            arrays.decode(array, self.dtype) for array in self.stored
        )

    def empty(self, like: np.ndarray, channels_last: bool) -> np.ndarray:
        return arrays.as_map(np.full(like.shape, np.nan), self.dtype, channels_last)

    def fields(self, out: np.ndarray) -> dict:
        maps = [arrays.map_of(array, self.dtype) for array in (*self.stored[:3], out)]
        names = ("query", "key", "value", "out")
        return {**dict(zip(names, maps, strict=True)), "scale": self.scale}

    def forward(self, kernels: Kernels) -> np.ndarray:
        out = self.empty(self.grad, self.channels_last)
        kernels.call(
            "object_attention",
            "object_attention",
            ctypes.c_bool(self.allow_tf32),
            ObjectAttention=self.fields(out),
        )
        return arrays.decode(out, self.dtype)

    def backward(self, kernels: Kernels) -> list[np.ndarray]:
        lasts = (self.channels_last, True, True)
        grads = [self.empty(a, last) for a, last in zip(self.stored[:3], lasts, strict=True)]
        names = ("grad_query", "grad_key", "grad_value")
        maps = [arrays.map_of(grad, self.dtype) for grad in grads]
        kernels.call(
            "object_attention_backward",
            "object_attention",
            ctypes.c_bool(self.allow_tf32),
            ObjectAttentionBackward={
                "forward": self.fields(self.stored[3]),
                **dict(zip(names, maps, strict=True)),
            },
        )
        return [arrays.decode(grad, self.dtype) for grad in grads]

    def exact(self) -> list[np.ndarray]:
        """The result and the gradients of query, key and value."""
        scores = self.scale * np.einsum("bdn,bdk->bkn", self.query, self.key)
        weights = np.exp(scores - arrays.log_sum_exp(scores)[:, None])
        slopes = np.einsum("bdn,bdk->bkn", self.grad, self.value)
        mean = (weights * slopes).sum(1, keepdims=True)
        factors = self.query, self.key, self.value, self.grad
        return self._sums(weights, weights * (slopes - mean), *factors)

    def _sums(self, weights, grads, query, key, value, grad) -> list[np.ndarray]:
        return [
            np.einsum("bkn,bdk->bdn", weights, value),
            self.scale * np.einsum("bkn,bdk->bdn", grads, key),
            self.scale * np.einsum("bkn,bdn->bdk", grads, query),
            np.einsum("bkn,bdn->bdk", weights, grad),
        ]

    def magnitudes(self) -> list[np.ndarray]:
        """The same of absolute values: what an error relative to a weight leads to."""
        factors = [np.abs(x) for x in (self.query, self.key, self.value, self.grad)]
        scores = self.scale * np.einsum("bdn,bdk->bkn", self.query, self.key)
        weights = np.exp(scores - arrays.log_sum_exp(scores)[:, None])
        slopes = np.einsum("bdn,bdk->bkn", factors[3], factors[2])
        mean = (weights * slopes).sum(1, keepdims=True)
        if self.dtype == "float32":  # a score has an error, those of 16 bits have exact products
            weights = weights * (
                1 + self.scale * np.einsum("bdn,bdk->bkn", *factors[:2]).max(1, keepdims=True)
            )
        return self._sums(weights, weights * (slopes + mean), *factors)


def compare(kernels, b, d, n, k, dv, products, channels_last, sharpness=1.0):
    random = np.random.default_rng(0)
    shapes = (b, d, n), (b, d, k), (b, dv, k), (b, dv, n)
    query, key, value, grad = (random.normal(size=shape) for shape in shapes)
    call = Attention(sharpness * query, key, value, grad, products, channels_last)
    out, grads = call.forward(kernels), call.backward(kernels)
    assert np.array_equal(out, call.forward(kernels))
    if b == 0:
        assert out.size == grads[0].size == grads[1].size == 0
        return
    for ours, exact, size in zip((out, *grads), call.exact(), call.magnitudes(), strict=True):
        # Weights are rounded before they are multiplied, and so are the gradients of scores.
        slack = arrays.rounding(exact, call.dtype) + EPSILON[products] * size
        arrays.assert_within(ours, exact, slack, (b, d, n, k, dv, products))


MUTANTS = [
    Mutant(
        "query overwritten while it is read",
        "race",
        RACE_WRITE,
        "      sync_block();  // the query has been read\n",
        "",
    ),
    Mutant(
        "weights overwritten while they are read",
        "race",
        RACE_WRITE,
        "    sync_block();  // the weights have been read\n",
        "",
    ),
    Mutant(
        "no barrier between the steps",
        "race",
        RACE_READ,
        "    wait_for_copies<0>();\n    sync_block();\n    const int next_stage",
        "    wait_for_copies<0>();\n    const int next_stage",
        "common/region_products.cuh",
    ),
    Mutant(
        "blocks that share their sums",
        "race",
        RACE_WRITE,
        "(int64_t)blockIdx.y * gridDim.x + blockIdx.x;",
        "(int64_t)blockIdx.y * gridDim.x;",
    ),
    Mutant(
        "copies not waited for",
        "asan",
        ASAN,
        "    wait_for_copies<0>();\n    sync_block();\n    const int next_stage",
        "    sync_block();\n    const int next_stage",
        "common/region_products.cuh",
    ),
    Mutant(
        "gradients of regions that are not there",
        "asan",
        ASAN,
        "region < map.pixels && ",
        "",
    ),
    Mutant(
        "pixels beyond the tile",
        "asan",
        ASAN,
        "block.own_row() < tile_rows;\n    const bool is_first",
        "first + block.own_row() < end;\n    const bool is_first",
    ),
    Mutant(
        "pixels of another tile in the sums",
        "plain",
        VALUES,
        "block.pixel_tile(turns.stage()),\n                                            tile_rows);",
        "block.pixel_tile(turns.stage()),\n"
        "                                            call.shares.tile);",
    ),
    Mutant(
        "regions that are not there in the softmax",
        "plain",
        VALUES,
        "8 * i + e % 2 < left ? scale * scores[i][e] : -infinity()",
        "scale * scores[i][e]",
    ),
    Mutant(
        "norm of another row",
        "plain",
        VALUES,
        "values[i][2] *= lower",
        "values[i][2] *= upper",
        "common/region_products.cuh",
    ),
    Mutant(
        "columns of the result twice",
        "plain",
        VALUES,
        "weights[r][step], right[1]);",
        "weights[r][step], right[0]);",
        "common/region_products.cuh",
    ),
    Mutant(
        "sums of another tile of channels",
        "plain",
        VALUES,
        "      if (i == tile) {",
        "      if (i == tile || i == tile - 1) {",
    ),
    Mutant(
        "sums that nobody started",
        "plain",
        VALUES,
        "is_first = first == begin",
        "is_first = first < 0",
    ),
    Mutant(
        "too little shared memory",
        "plain",
        "more shared memory is taken",
        "    return measure.bytes();",
        "    return measure.bytes() - 16;",
        "common/region_products.cuh",
    ),
]
