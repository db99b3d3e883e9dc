# SPDX-License-Identifier: MIT
"""Records, curves, plain lines, and the bar of a terminal."""

import json
import sys
from dataclasses import dataclass

import pytest
from PIL import Image

from openseg.engine.reporting import Records, Reporter, draw_curves, duration, read_records
from openseg.errors import ConfigError


@dataclass
class Metrics:
    mean_iou: float = 0.25

    def to_dict(self):
        return {"mean_iou": self.mean_iou, "classes": {"sky": {"iou": None}}}


def losses(iteration, loss=1.5):
    rates = {"lr": 0.01, "images_per_second": 3.0, "data_seconds": 0.1, "memory_mib": 512.0}
    return {"iteration": iteration, "loss": loss, **rates}


def tell(folder, iterations, start=0):
    with Reporter(4, start, folder) as reporter:
        for iteration in iterations:
            reporter.on_step(iteration)
            reporter.on_losses(losses(iteration))
        reporter.on_validation(iterations[-1], Metrics(), is_best=True)


def test_lines_records_and_curves(tmp_path, capsys):
    tell(tmp_path, [2, 4])
    printed = capsys.readouterr().out
    assert "2/4  loss 1.5000  lr 1.00e-02  3.0 images/s  data 0.100 s  512 MiB" in printed
    assert "validation at 4: mean IoU 25.00 %  (best so far)" in printed
    assert "loss 1.5000" in (tmp_path / "log.txt").read_text()
    kinds = [(record["kind"], record["iteration"]) for record in read_lines(tmp_path)]
    assert kinds == [("train", 2), ("train", 4), ("validation", 4)]
    assert Image.open(tmp_path / "curves.png").size[0] > 600


def read_lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_run_repeats_no_iteration_and_drops_a_torn_line(tmp_path):
    tell(tmp_path, [1, 2, 3])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "iter')
    tell(tmp_path, [3, 4], start=2)
    assert [record["iteration"] for record in read_lines(tmp_path)] == [1, 2, 3, 4, 4]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    Records(tmp_path / "metrics.jsonl").append({"iteration": 1, "iou": [float("nan"), 0.5]})
    assert read_records(tmp_path / "metrics.jsonl") == [{"iteration": 1, "iou": [None, 0.5]}]


def test_nothing_is_written_without_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tell(None, [1])
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    with Reporter(4, 0, tmp_path) as reporter:
        reporter.on_step(4)
        reporter.on_validation(4, Metrics(), is_best=True)
        reporter.on_losses(losses(4))
    printed = capsys.readouterr().out
    assert "4/4" in printed
    assert "loss 1.5000" in printed
    assert "validation at 4" in printed


def test_without_matplotlib_one_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with Reporter(4, 0, tmp_path) as reporter:
        for iteration in (2, 4):
            reporter.on_validation(iteration, Metrics(), is_best=False)
    assert capsys.readouterr().out.count("openseg[plot]") == 1
    assert not (tmp_path / "curves.png").exists()


def test_curves_of_an_empty_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_tensorboard_gets_every_number(tmp_path):
    with Reporter(4, 0, tmp_path, tensorboard=True) as reporter:
        reporter.on_losses(losses(1))
        reporter.on_validation(1, Metrics(), is_best=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"train/loss", "train/lr", "validation/mean_iou"} <= set(events.Tags()["scalars"])


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"openseg\[tensorboard\]"):
        Reporter(4, 0, tmp_path, tensorboard=True)


def test_durations():
    assert [duration(s) for s in (0.4, 62, 3723)] == ["0:00", "1:02", "1:02:03"]
