# SPDX-License-Identifier: MIT
"""Learning rates as plain functions of the iteration, so that resuming has nothing to restore."""

from collections.abc import Callable
from typing import Literal

from torch.optim import Optimizer

Schedule = Callable[[int], float]


def poly_schedule(
    iterations: int,
    power: float = 0.9,
    warmup_iterations: int = 0,
    warmup: Literal["linear", "quartic"] = "linear",
) -> Schedule:
    """The factor of the learning rate at an iteration, counted from 0.

    (1 - iteration / iterations)^power as in DeepLab (Chen et al., 2017), times r or r^4 during the
    warm-up, where r = (iteration + 1) / warmup_iterations.
    """

    def factor(iteration: int) -> float:
        decay = (1 - iteration / iterations) ** power
        if iteration >= warmup_iterations:
            return decay
        ratio = (iteration + 1) / warmup_iterations
        return decay * (ratio if warmup == "linear" else ratio**4)

    return factor


def set_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Give each parameter group its own `base_lr` times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
