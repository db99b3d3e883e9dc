# SPDX-License-Identifier: MIT
"""Processes: two of them train and evaluate as one, and devices that do not exist are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openseg.engine.distributed import any_process, choose_device, gather, process_group
from openseg.errors import ConfigError
from tests.engine.pictures import count_and_write
from tests.engine.tiny import assert_equal_states, make_batch, make_trainer


def test_two_processes_are_as_one(tmp_path):
    """One start of both for all of it, since it takes seconds."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    subprocess.run(
        [sys.executable, *launcher, "-m", "tests.engine.two_processes", str(tmp_path)],
        check=True,
        timeout=300,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    told = torch.load(tmp_path / "told.pt")
    assert told["any"] == [True, False]
    assert told["broken"] == ["head.bias"] * 2  # in the second alone
    assert told["ranks"] == [0, 1]
    assert told["random"] == 2
    _check_that_they_took_the_steps_of_one(told)
    _check_that_they_counted_and_wrote_each_image_once(told, tmp_path)


def _check_that_they_took_the_steps_of_one(told):
    """Without batch norm, whose statistics are those of a process on the CPU."""
    single = make_trainer(norm=False, dropout=0.0)
    losses = [float(single.step(*make_batch(index).values())["loss"]) for index in range(3)]
    assert told["losses"] == pytest.approx(losses, rel=1e-5)
    one, other = told["states"]
    assert_equal_states(one, other)
    for name, value in single.model.state_dict().items():
        torch.testing.assert_close(one[name], value)
    assert told["samples"] == single.samples == 12


def _check_that_they_counted_and_wrote_each_image_once(told, folder):
    expected = count_and_write(folder / "single")
    assert expected.any()
    assert all(torch.equal(counts, expected) for counts in told["counts"])
    written = [sorted(p.name for p in (folder / f"of{rank}" / "p").iterdir()) for rank in range(2)]
    assert written == [["0.png", "2.png"], ["1.png"]]


def test_one_process_is_a_group_of_its_own():
    with process_group("cpu") as process:
        assert (process.rank, process.world_size, process.is_main) == (0, 1, True)
        assert gather("a") == ["a"]
        assert any_process(True)
        assert not any_process(False)


def test_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert choose_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match="GPU 0, but PyTorch sees no GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda", 0)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert choose_device("cuda", local_rank=1) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="GPU 2, but PyTorch sees 2 GPUs"):
        choose_device("cuda:2")
    with pytest.raises(ConfigError, match="'gpu' given, auto, cpu, cuda"):
        choose_device("gpu")
