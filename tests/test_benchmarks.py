# SPDX-License-Identifier: MIT
"""What of the benchmarks for a GPU can be tried without one: no minute there is to be lost."""

import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts(monkeypatch):
    """They import each other by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("operator", ["object_attention", "spatial_gather", "self_attention"])
def test_peers_on_a_gpu_are_made(operator):
    import bench_attention

    names = set(bench_attention.peers_of(operator, "cuda"))
    fused = {"sdpa flash", "sdpa cudnn", "sdpa efficient", "flex"}
    assert names == {"eager", "compile"} | (set() if operator == "spatial_gather" else fused)


def test_a_case_that_cannot_be_made_is_recorded(capsys):
    import _cases

    def cases():
        yield _cases.Case("small", lambda: None, {}, lambda: True, 8)
        raise RuntimeError("CUDA error")

    kept = []
    floors = _cases.Floors(1e9, {torch.float32: 1e9})
    failures = _cases.report("name", cases(), "cpu", floors, lambda run: 1e-3, kept.append)
    assert failures == 1
    assert kept[0]["ours"] == 1e-3
    assert kept[1]["case"] == "what follows small"
    assert kept[1]["failed"] == "RuntimeError: CUDA error"
    assert "CUDA error" in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["stops", "goes on"])
def test_a_command_without_end_is_stopped(monkeypatch, asked):
    import run_gpu

    monkeypatch.setattr(run_gpu, "GRACE", 1)
    monkeypatch.setattr(run_gpu, "deadline", time.monotonic() + 2)
    ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN); " if asked == "goes on" else ""
    start = time.monotonic()
    code = f"import signal, time; {ignore}print('so far', flush=True); time.sleep(60)"
    passed, last = run_gpu.run([sys.executable, "-c", code])
    assert not passed
    assert last.startswith("stopped, the time is over: ")
    assert time.monotonic() - start < 30


def test_a_command_tells_whether_it_passed(capfd):
    import run_gpu

    assert run_gpu.run([sys.executable, "-c", "print('good')"]) == (True, "good")
    assert run_gpu.run([sys.executable, "-c", "print('bad'); exit(1)"]) == (False, "bad")
    assert "good" in capfd.readouterr().out
