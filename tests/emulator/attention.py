# SPDX-License-Identifier: MIT
"""Calls and cases that `self_attention` and `interlaced_attention` have in common."""

import ctypes
from dataclasses import dataclass, field

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels

# Relative errors of a product, of what is stored as a factor, and of a value in its dtype.
_PRODUCT = {"float32": 2.0**-21, "tf32": 2.0**-10, "bfloat16": 2.0**-21, "float16": 2.0**-21}
_FACTOR = {"float32": 2.0**-22, "tf32": 2.0**-10, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@dataclass
class Sets:
    """Which pixels of a map of this size attend to each other."""

    size: tuple[int, int]
    fields: dict[str, int]  # of PixelSets
    pixels: np.ndarray = field(repr=False)  # [sets, pixels of a set]: where they lie in the map


@dataclass
class Case:
    batch: int
    channels: int  # D
    value_channels: int  # Dv
    sets: Sets
    kind: str = "bfloat16"  # a dtype, or "tf32"
    channels_last: bool = True
    sliced: bool = False  # maps are some channels of wider ones
    shared: bool = False
    mean: float = 0.0  # of query and key
    spread: float = 1.0
    scale: float = 0.25

    @property
    def dtype(self) -> str:
        return "float32" if self.kind == "tf32" else self.kind


class AttentionCall:
    """One call with random arguments, and what it should give in float64."""

    def __init__(self, case: Case):
        self.case = case
        self.margins: list[np.ndarray] = []
        random = np.random.default_rng(0)
        shape = self._shape(case.channels)
        self.query = self._map(random.normal(case.mean, case.spread, shape))
        self.key = self.query
        if not case.shared:
            self.key = self._map(random.normal(case.mean, case.spread, shape))
        self.value = self._map(random.normal(size=self._shape(case.value_channels)))
        self.out = self._nan(case.value_channels)
        self.pixels = case.sets.pixels
        # The greatest scaled score, and 1 / Σ exp(score - greatest).
        self.statistics = np.full((2, case.batch, *self.pixels.shape), np.nan, np.float32)
        self._softmax()

    def _shape(self, channels: int) -> tuple[int, ...]:
        return (self.case.batch, channels, *self.case.sets.size)

    def _nan(self, channels: int) -> np.ndarray:
        """An unwritten map; a sliced one has neighbours, to be left alone."""
        case = self.case
        margin = 8 if case.sliced else 0
        whole = arrays.filled_with_nan(
            self._shape(channels + 2 * margin), case.dtype, case.channels_last
        )
        self.margins += [whole[:, :margin], whole[:, margin + channels :]]
        return whole[:, margin : margin + channels]

    def _map(self, values: np.ndarray) -> np.ndarray:
        result = self._nan(values.shape[1])
        result[:] = arrays.encode(values, self.case.dtype)
        return result

    def sets_of(self, array: np.ndarray) -> np.ndarray:
        """[B, C, H, W] as float64 [B, sets, pixels, C]."""
        values = arrays.decode(array, self.case.dtype)
        values = values.reshape(*values.shape[:2], self.pixels.size)
        return values[:, :, self.pixels].transpose(0, 2, 3, 1)

    def _softmax(self) -> None:
        q, k = self.sets_of(self.query), self.sets_of(self.key)
        scores = self.case.scale * (q @ k.swapaxes(2, 3))
        most = scores.max(3, keepdims=True)
        weights = np.exp(scores - most)
        total = weights.sum(3, keepdims=True)
        self.weights = weights / total
        self.exact_lse = (np.log(total) + most)[..., 0]
        magnitude = abs(self.case.scale) * (abs(q) @ abs(k).swapaxes(2, 3)).max(initial=0)
        self.score_slack = _PRODUCT[self.case.kind] * magnitude + 1e-6
        self.weight_slack = 2 * self.score_slack + _FACTOR[self.case.kind]

    def fields(self) -> dict[str, object]:
        return {
            "query": arrays.map_of(self.query, self.case.dtype),
            "key": arrays.map_of(self.key, self.case.dtype),
            "value": arrays.map_of(self.value, self.case.dtype),
            "shared": self.case.shared,
            "scale": self.case.scale,
            "sets": self.case.sets.fields,
            "out": arrays.map_of(self.out, self.case.dtype),
            "statistics": self.statistics,
        }

    def forward(self, kernels: Kernels) -> None:
        tf32 = ctypes.c_bool(self.case.kind == "tf32")
        kernels.call("attention", "common", tf32, Attention=self.fields())

    def check_forward(self) -> None:
        v = self.sets_of(self.value)
        exact = self.weights @ v
        slack = self.weight_slack * (self.weights @ abs(v))
        self._compare("out", self.out, exact, slack)
        most, inverse = self.statistics.astype(np.float64)
        error = abs(most - np.log(inverse) - self.exact_lse)
        assert (error <= 2 * self.score_slack).all(), f"{self.case}: lse is off by {error.max()}"

    def backward(self, kernels: Kernels) -> None:
        case = self.case
        random = np.random.default_rng(1)
        self.grad = self._map(random.normal(size=self._shape(case.value_channels)))
        self.grad_query = self._nan(case.channels)
        self.grad_key = self._nan(case.channels)
        self.grad_value = self._nan(case.value_channels)
        fields = {
            "forward": self.fields(),
            "grad_out": arrays.map_of(self.grad, self.case.dtype),
            "grad_query": arrays.map_of(self.grad_query, self.case.dtype),
            "grad_key": arrays.map_of(self.grad_key, self.case.dtype),
            "grad_value": arrays.map_of(self.grad_value, self.case.dtype),
        }
        tf32 = ctypes.c_bool(case.kind == "tf32")
        kernels.call("attention_backward", "common", tf32, AttentionBackward=fields)

    def check_backward(self) -> None:
        q, k, v = (self.sets_of(array) for array in (self.query, self.key, self.value))
        grad, out = self.sets_of(self.grad), self.sets_of(self.out)
        weights, weights_t = self.weights, self.weights.swapaxes(2, 3)
        grad_weights = grad @ v.swapaxes(2, 3)
        delta = (grad * (weights @ v)).sum(3, keepdims=True)
        grad_scores = weights * (grad_weights - delta)
        # Products of gradients and values, and their mean, which is made from the rounded result.
        product_slack = _PRODUCT[self.case.kind] * (abs(grad) @ abs(v).swapaxes(2, 3))
        out_slack = (self.weight_slack + _FACTOR[self.case.kind]) * (weights @ abs(v)) + 1e-6 * abs(
            out
        )
        delta_slack = (abs(grad) * out_slack).sum(3, keepdims=True)
        score_slack = self.weight_slack * abs(grad_scores) + weights * (product_slack + delta_slack)

        scale = self.case.scale
        grad_query, slack_query = grad_scores @ k, score_slack @ abs(k)
        grad_key = grad_scores.swapaxes(2, 3) @ q
        slack_key = score_slack.swapaxes(2, 3) @ abs(q)
        if self.case.shared:
            assert np.isnan(arrays.decode(self.grad_key, self.case.dtype)).all()
            grad_query, slack_query = grad_query + grad_key, slack_query + slack_key
        else:
            self._compare("grad_key", self.grad_key, scale * grad_key, abs(scale) * slack_key)
        self._compare("grad_query", self.grad_query, scale * grad_query, abs(scale) * slack_query)
        slack = self.weight_slack * (weights_t @ abs(grad))
        self._compare("grad_value", self.grad_value, weights_t @ grad, slack)

    def _compare(self, name: str, stored: np.ndarray, exact: np.ndarray, slack: np.ndarray) -> None:
        error = abs(self.sets_of(stored) - exact)
        smallest = 1e-35  # weights below are 0
        slack = slack + arrays.rounding(exact, self.case.dtype) + smallest
        assert (error <= slack).all(), (
            f"{self.case}: {name} is off by {error.max()}, {(error / slack).max()} times the slack"
        )


def check(kernels: Kernels, cases: list[Case]) -> None:
    for case in cases:
        call = AttentionCall(case)
        call.forward(kernels)
        call.check_forward()
        call.backward(kernels)
        call.check_backward()
        assert all(np.isnan(arrays.decode(m, case.dtype)).all() for m in call.margins), case
