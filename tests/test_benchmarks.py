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


def test_nan_is_not_right():
    import bench_attention

    known = torch.ones(3, dtype=torch.float64)
    bad = torch.tensor([1.0, torch.nan, 1.0])
    assert bench_attention.agrees([known.float()], [known.float()], [known], torch.float32)
    assert not bench_attention.agrees([bad], [known.float()], [known], torch.float32)


def test_a_capture_that_fails_loses_no_time(monkeypatch):
    import _cases

    def captured(run):
        raise RuntimeError("capture failed")

    monkeypatch.setattr(_cases._timing, "CUDA_MODES", {"warm": lambda run: 2.0, "graph": captured})
    monkeypatch.setattr(_cases._timing, "peak_bytes", lambda run, device: 8)
    case = _cases.Case("small", lambda: None, {"eager": lambda: None}, lambda: True, 8)
    floors = _cases.Floors(1e9, {torch.float32: 1e9})
    figures = _cases.measure("name", case, "cuda", floors, lambda run: 3.0)
    assert figures["peers"] == {"eager": 3.0}
    assert figures["modes"] == {"ours": {"warm": 2.0}, "eager": {"warm": 2.0}}
    assert figures["refused"] == {
        f"{name}, graph": "RuntimeError: capture failed" for name in ("ours", "eager")
    }


def of_gpu(seconds, peers, commit="a", **graphs):
    """A record of one case, as `_cases.measure` makes it."""
    return {
        "device": "GPU", "torch": "2", "commit": commit, "operator": "attention", "case": "small",
        "ours": seconds, "peers": peers, "peer_peaks": dict.fromkeys(peers, 2e6), "peak": 1e6,
        "floor": 1e-5, "modes": {name: {} for name in ("ours", *peers)} | graphs,
    }  # fmt: skip


def test_a_table_has_the_best_peer_of_all_runs_of_a_commit(monkeypatch):
    import tables

    told = [
        {"device": "GPU", "torch": "2", "tests": "== 3 passed ==", "of": "not triton"},
        of_gpu(1e-5, {"old": 1e-6}, commit="before"),
        of_gpu(6e-5, {"sdpa": 9e-5}, ours={"graph": 4e-5, "warm": 3e-5}, sdpa={"graph": 8e-5}),
        {"device": "GPU", "torch": "2", "operator": "attention", "case": "large", "failed": "no"},
        of_gpu(5e-5, {"flex": 15e-5}, ours={"graph": 4e-5}),
    ]
    monkeypatch.setattr(tables, "records", lambda name: told if name == "gpu" else [])
    *_, row = tables.gpu().splitlines()
    assert "- tests not triton: 3 passed" in tables.gpu()
    cells = ["`attention`", "small", "50 µs", "40 µs", "", "25 %", "2.0×", "sdpa", "1 / 2 MB"]
    assert row == f"| {' | '.join(cells)} |"
