# SPDX-License-Identifier: MIT
"""Cases and mutants of `spatial_gather`."""

import ctypes

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels
from tests.emulator.mutants import ASAN, RACE_WRITE, UNWRITTEN, VALUES, Mutant

CASES = [  # B, C, N, K, dtype of features or "tfloat32", channels_last; then the same of logits
    (1, 1, 1, 1, "float32", True, "float32", True),
    (2, 8, 15, 2, "bfloat16", True, "bfloat16", True),
    (1, 100, 197, 19, "float16", True, "float16", True),  # four splits, rows of 200 bytes
    (1, 296, 133, 19, "bfloat16", False, "float32", False),  # two groups of channels
    (1, 40, 600, 33, "bfloat16", True, "bfloat16", True),  # two tiles for a block
    (3, 40, 77, 59, "tfloat32", True, "float32", True),
    (2, 16, 35, 59, "float32", False, "bfloat16", True),
    (2, 32, 71, 19, "float32", True, "float32", False),
    (1, 64, 33, 5, "bfloat16", True, "bfloat16", True),
    (1, 72, 230, 150, "bfloat16", True, "bfloat16", False),  # tiles differ among architectures
    (1, 8, 33, 150, "float32", True, "float16", True),
    (1, 8, 40, 176, "float16", True, "float16", True),
    (1, 136, 33, 177, "float16", False, "float16", True),
    (1, 8, 70, 256, "float16", True, "float16", True),
    (1, 4, 33, 256, "float32", False, "float32", False),
    (0, 8, 5, 3, "float32", True, "float32", True),
]
EPSILON = {"float32": 2.0**-20, "tfloat32": 2.0**-10, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def check(kernels: Kernels) -> None:
    for case in CASES:
        compare(kernels, *case)
    for layout in (True, False):
        compare(kernels, 1, 8, 150, 3, "float16", True, "float32", layout, sharpness=1000)
    random = np.random.default_rng(0)
    features, logits = random.normal(size=(1, 8, 150)), random.normal(size=(1, 3, 150))
    # A region that is absent from all but the last split, one that is nowhere, and logits that are
    # equal, and of which the scale makes numbers that are rounded.
    logits[0, 0, :140], logits[0, 1], logits[0, 2] = -np.inf, -np.inf, -1e30
    call = Gather(features, logits, "float32", True, "float32", False)
    call.scale = 0.3
    out = call.forward(kernels)
    share = np.exp(call.scale * call.logits[0, 0, 140:])
    expected = (call.features[0, :, 140:] * share).sum(1) / share.sum()
    assert np.allclose(out[0, :, 0], expected, rtol=1e-5)
    assert np.isnan(out[0, :, 1]).all()
    assert np.allclose(out[0, :, 2], call.features[0].mean(1), rtol=1e-5, atol=1e-6)


class Gather:
    """features [B, C, N] and logits [B, K, N], each rounded to its dtype."""

    scale = 0.5

    def __init__(self, features, logits, products, channels_last, logits_dtype, logits_last):
        self.allow_tf32 = products == "tfloat32"
        self.dtypes = "float32" if self.allow_tf32 else products, logits_dtype
        self.lasts = channels_last, logits_last
        self.stored = [
            arrays.as_map(values, dtype, last)
            for values, dtype, last in zip((features, logits), self.dtypes, self.lasts, strict=True)
        ]
        self.features, self.logits = (
            arrays.decode(array, dtype)
            for array, dtype in zip(self.stored, self.dtypes, strict=True)
        )
        batch, channels = features.shape[:2]
        regions = logits.shape[1]
        self.out = arrays.as_map(np.full((batch, channels, regions), np.nan), "float32", True)
        self.statistics = np.full((batch, 2, regions), np.nan, np.float32)

    def fields(self) -> dict:
        maps = [
            arrays.map_of(array, dtype)
            for array, dtype in zip(self.stored, self.dtypes, strict=True)
        ]
        return {
            "features": maps[0],
            "logits": maps[1],
            "scale": self.scale,
            "out": arrays.map_of(self.out, "float32"),
            "statistics": self.statistics,
        }

    def forward(self, kernels: Kernels) -> np.ndarray:
        kernels.call(
            "spatial_gather",
            "spatial_gather",
            ctypes.c_bool(self.allow_tf32),
            SpatialGather=self.fields(),
        )
        return self.out.astype(np.float64)

    def backward(self, kernels: Kernels, grad: np.ndarray) -> list[np.ndarray]:
        """For the gradient of the result as it is stored, [B, C, K]."""
        grads = [
            arrays.as_map(np.full(values.shape, np.nan), dtype, last)
            for values, dtype, last in zip(self.stored, self.dtypes, self.lasts, strict=True)
        ]
        kernels.call(
            "spatial_gather_backward",
            "spatial_gather",
            ctypes.c_bool(self.allow_tf32),
            SpatialGatherBackward={
                "forward": self.fields(),
                "grad_out": arrays.map_of(grad, self.dtypes[0]),
                "grad_features": arrays.map_of(grads[0], self.dtypes[0]),
                "grad_logits": arrays.map_of(grads[1], self.dtypes[1]),
            },
        )
        return [arrays.decode(g, dtype) for g, dtype in zip(grads, self.dtypes, strict=True)]

    def exact(self, grad: np.ndarray) -> list[np.ndarray]:
        """The result and the gradients of features and logits."""
        weights, out = self._forward(self.features)
        products = np.einsum("bck,bcn->bkn", grad, self.features)
        mean = np.einsum("bck,bck->bk", grad, out)[..., None]
        return [
            out,
            np.einsum("bkn,bck->bcn", weights, grad),
            self.scale * weights * (products - mean),
        ]

    def magnitudes(self, grad: np.ndarray) -> list[np.ndarray]:
        """The same of absolute values: what an error relative to a weight leads to."""
        features, grad = np.abs(self.features), np.abs(grad)
        weights, out = self._forward(features)
        if self.dtypes[0] == "float16":  # which has smaller weights with an absolute error
            weights = np.maximum(weights, 2.0**-29)
        products = np.einsum("bck,bcn->bkn", grad, features)
        mean = np.einsum("bck,bck->bk", grad, out)[..., None]
        return [
            out,
            np.einsum("bkn,bck->bcn", weights, grad),
            self.scale * weights * (products + mean),
        ]

    def _forward(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores = self.scale * self.logits
        weights = np.exp(scores - arrays.log_sum_exp(scores.swapaxes(1, 2))[..., None])
        return weights, np.einsum("bkn,bcn->bck", weights, features)


def compare(kernels, b, c, n, k, products, last, logits_dtype, logits_last, sharpness=1.0):
    random = np.random.default_rng(0)
    shapes = (b, c, n), (b, k, n), (b, c, k)
    features, logits, grad = (random.normal(size=shape) for shape in shapes)
    call = Gather(features, sharpness * logits, products, last, logits_dtype, logits_last)
    out = call.forward(kernels)
    stored_grad = arrays.as_map(grad, call.dtypes[0], True)
    grads = call.backward(kernels, stored_grad)
    assert np.array_equal(out, call.forward(kernels))
    if b == 0:
        assert out.size == grads[0].size == grads[1].size == 0
        return
    scores = call.scale * call.logits
    assert (call.statistics[:, 0] == scores.max(2).astype(np.float32)).all()
    sums = np.exp(scores - scores.max(2, keepdims=True)).sum(2)
    assert np.allclose(call.statistics[:, 1] * sums, 1, rtol=1e-5)
    grad = arrays.decode(stored_grad, call.dtypes[0])
    sizes = call.magnitudes(grad)
    dtypes = "float32", *call.dtypes
    for ours, exact, size, dtype in zip(
        (out, *grads), call.exact(grad), sizes, dtypes, strict=True
    ):
        # Weights are rounded before they are multiplied.
        slack = arrays.rounding(exact, dtype) + EPSILON[products] * size
        arrays.assert_within(ours, exact, slack, (b, c, n, k, products))


MUTANTS = [
    Mutant(
        "parts read before they are there",
        "race",
        UNWRITTEN,
        "  sync_block();\n  if (part == 0",
        "  if (part == 0",
    ),
    Mutant(
        "weights read before they are there",
        "race",
        UNWRITTEN,
        "step < steps; ++step) {\n    wait_for_copies<0>();\n    sync_block();\n",
        "step < steps; ++step) {\n    wait_for_copies<0>();\n",
    ),
    Mutant(
        "products overwritten while they are read",
        "race",
        RACE_WRITE,
        "      sync_warp();  // the tile has been read\n",
        "",
    ),
    Mutant(
        "splits that share their sums",
        "race",
        RACE_WRITE,
        "(part * call.groups + blockIdx.x) *",
        "(batch * call.splits * call.groups + blockIdx.x) *",
    ),
    Mutant(
        "copies not waited for",
        "asan",
        ASAN,
        "step < steps; ++step) {\n    wait_for_copies<0>();\n",
        "step < steps; ++step) {\n",
    ),
    Mutant(
        "a result for regions that are not there",
        "asan",
        ASAN,
        "index >= call.group_sums || place.region >= count ||",
        "index >= call.group_sums ||",
    ),
    Mutant(
        "logits of pixels that are not there",
        "asan",
        ASAN,
        "int row = worker + i * workers;\n"
        "      const int real = row < inside.rows ? row : inside.rows - 1;",
        "int real = worker + i * workers;",
        "spatial_gather/cuda/exponentials.cuh",
    ),
    Mutant(
        "logits of regions that are not there",
        "asan",
        ASAN,
        "index < count ? to_float(*at[i]) : 0",
        "to_float(*at[i])",
        "spatial_gather/cuda/exponentials.cuh",
    ),
    Mutant(
        "splits of different greatest logits added up",
        "plain",
        VALUES,
        "exp_fast(at[i * other] - greatest[i]);",
        "1.0f;",
    ),
    Mutant(
        "differences of logits that are not rounded",
        "plain",
        VALUES,
        "rounded_product(scale, logit) - greatest",
        "fmaf(scale, logit, -greatest)",
        "spatial_gather/cuda/exponentials.cuh",
    ),
    Mutant(
        "columns of another warp",
        "plain",
        VALUES,
        "const int channel = warp_index() * warp_channels;",
        "const int channel = (warp_index() ^ 1) * warp_channels;",
    ),
    Mutant(
        "no mean in the gradient of logits",
        "plain",
        VALUES,
        "(*staged - mean)",
        "(*staged - 0 * mean)",
    ),
]
