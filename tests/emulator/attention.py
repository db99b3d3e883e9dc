# SPDX-License-Identifier: MIT
"""Calls and cases that `self_attention` and `interlaced_attention` have in common."""

from dataclasses import dataclass

import numpy as np

from tests.emulator import arrays
from tests.emulator.kernels import Kernels

# Relative errors of a product, of what is stored as a factor, and of a value in its dtype.
_PRODUCT = {"float32": 2.0**-21, "tf32": 2.0**-10, "bfloat16": 2.0**-21, "float16": 2.0**-21}
_FACTOR = {"float32": 2.0**-22, "tf32": 2.0**-10, "bfloat16": 2.0**-8, "float16": 2.0**-11}


@dataclass
class Sets:
    """Which pixels of a map of this size attend to each other: PixelSets, and as indices."""

    size: tuple[int, int]
    fields: dict[str, int]

    def pixels(self) -> np.ndarray:
        """[sets, pixels of a set]: where they lie in the map."""
        f = self.fields
        down, across, line, column = np.indices(
            (f["down"], f["across"], f["lines"], f["columns"])
        ).reshape(4, -1)
        positions = (
            down * f["stride_down"]
            + across * f["stride_across"]
            + line * f["stride_line"]
            + column * f["stride_column"]
        )
        return positions.reshape(f["down"] * f["across"], -1)


@dataclass
class Case:
    batch: int
    channels: int  # D
    value_channels: int  # Dv
    sets: Sets
    kind: str = "bfloat16"  # a dtype, or "tf32"
    channels_last: bool = True
    shared: bool = False
    spread: float = 1.0  # of query and key
    scale: float = 0.25

    @property
    def dtype(self) -> str:
        return "float32" if self.kind == "tf32" else self.kind


class AttentionCall:
    """One call with random arguments, and what it should give in float64."""

    def __init__(self, case: Case):
        self.case = case
        random = np.random.default_rng(0)
        self.query = self._map(random.normal(size=self._shape(case.channels)) * case.spread)
        self.key = self.query
        if not case.shared:
            self.key = self._map(random.normal(size=self._shape(case.channels)) * case.spread)
        self.value = self._map(random.normal(size=self._shape(case.value_channels)))
        self.out = self._nan(case.value_channels)
        self.pixels = case.sets.pixels()
        self.lse = np.full((case.batch, *self.pixels.shape), np.nan, np.float32)
        self._softmax()

    def _shape(self, channels: int) -> tuple[int, ...]:
        return (self.case.batch, channels, *self.case.sets.size)

    def _map(self, values: np.ndarray) -> np.ndarray:
        return arrays.laid_out(arrays.encode(values, self.case.dtype), self.case.channels_last)

    def _nan(self, channels: int) -> np.ndarray:
        return arrays.filled_with_nan(
            self._shape(channels), self.case.dtype, self.case.channels_last
        )

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
        # Of a score, and of log-sum-exp, a float32: their difference is the exponent of a weight.
        self.lse_slack = _PRODUCT[self.case.kind] * magnitude + 2e-6
        self.weight_slack = 2 * self.lse_slack + _FACTOR[self.case.kind]

    def fields(self) -> dict[str, object]:
        dtype = self.case.dtype
        return {
            "query": arrays.map_of(self.query, dtype),
            "key": arrays.map_of(self.key, dtype),
            "value": arrays.map_of(self.value, dtype),
            "shared": self.case.shared,
            "scale": self.case.scale,
            "sets": self.case.sets.fields,
            "out": arrays.map_of(self.out, dtype),
            "lse": self.lse,
        }

    def forward(self, kernels: Kernels) -> None:
        kernels.call("attention", "common", self.case.kind == "tf32", Attention=self.fields())

    def check_forward(self) -> None:
        v = self.sets_of(self.value)
        exact = self.weights @ v
        slack = self.weight_slack * (self.weights @ abs(v))
        self._compare("out", self.out, exact, slack)
        error = abs(self.lse - self.exact_lse)
        assert (error <= self.lse_slack).all(), f"{self.case}: lse is off by {error.max()}"

    def _compare(self, name: str, stored: np.ndarray, exact: np.ndarray, slack: np.ndarray) -> None:
        error = abs(self.sets_of(stored) - exact)
        slack = slack + arrays.rounding(exact, self.case.dtype)
        assert (error <= slack).all(), f"{self.case}: {name} is off by {error.max()}"


def check(kernels: Kernels, cases: list[Case]) -> None:
    for case in cases:
        call = AttentionCall(case)
        call.forward(kernels)
        call.check_forward()
