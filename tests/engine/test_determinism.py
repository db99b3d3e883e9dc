# SPDX-License-Identifier: MIT
"""Seeds and states of the random number generators."""

import random

import numpy as np
import pytest
import torch

from openseg.engine.determinism import (
    random_state,
    set_deterministic,
    set_random_state,
    set_seed,
)

CPU = torch.device("cpu")


def draw():
    return random.random(), np.random.normal(), torch.rand(1).item()


def test_a_seed_and_a_state_bring_the_same_numbers_back():
    set_seed(3)
    first = draw()
    state = random_state(CPU)
    then = draw()
    set_random_state(state, CPU)
    assert draw() == then
    set_seed(3)
    assert draw() == first


def test_deterministic_mode_refuses_what_is_not(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_deterministic(True)
    try:
        assert torch.are_deterministic_algorithms_enabled()
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))
    finally:
        set_deterministic(False)
    assert not torch.are_deterministic_algorithms_enabled()
