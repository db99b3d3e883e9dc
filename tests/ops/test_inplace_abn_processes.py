# SPDX-License-Identifier: MIT
"""Two processes normalise as one does with both of their batches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openseg.ops import inplace_abn
from tests.ops.inplace_abn_processes import BACKENDS, SPLITS, problem, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("told")
    command = [sys.executable, "-m", "tests.ops.inplace_abn_processes", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([*command, str(rank)], cwd=ROOT, env=environment) for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def joined(one, other):
    """Maps side by side, gradients of weight and bias added; the running statistics are equal."""
    maps = [torch.cat(pair) for pair in zip(one[:2], other[:2], strict=True)]
    sums = [a + b for a, b in zip(one[2:4], other[2:4], strict=True)]
    assert torch.equal(torch.stack(one[4:]), torch.stack(other[4:]))
    return [*maps, *sums, *one[4:]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_are_one_with_the_whole_batch(told, split, backend):
    mine = joined(*(each[split, backend] for each in told))
    x, weight, bias, grad = (t.double() for t in problem())
    for ours, exact in zip(mine, run(x, weight, bias, grad, "reference"), strict=True):
        torch.testing.assert_close(ours.double(), exact.double(), rtol=1e-5, atol=1e-5)


def test_compiled_is_as_eager(told):
    for each in told:
        eager, compiled = each[SPLITS[-1], BACKENDS[-1]], each["compiled"]
        assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))


def test_a_group_of_one_process_is_no_group(told):
    for each in told:
        pairs = zip(each["alone"], each["group of one"], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_one_value_in_all_processes_is_too_few(told):
    for each in told:
        assert "more than one value for each channel, got one in all" in each["too few"]


def test_without_processes_the_world_is_this_one():
    x, weight, bias, _ = problem()
    alone = inplace_abn(x, weight, bias, None, None, training=True)
    assert torch.equal(
        alone, inplace_abn(x, weight, bias, None, None, training=True, group="world")
    )
