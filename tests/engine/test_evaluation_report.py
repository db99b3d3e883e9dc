# SPDX-License-Identifier: MIT
"""What evaluation prints and writes."""

import builtins
import io
import json
import os

import pytest
import torch
from PIL import Image

from openseg.engine.evaluation_report import (
    confusion_text,
    draw_confusion,
    print_report,
    write_report,
)
from openseg.errors import OutputError
from openseg.metrics import SegmentationMetrics

METRICS = SegmentationMetrics(
    torch.tensor([[3, 1, 0], [2, 2, 0], [0, 0, 0]]), ("sky", "road", "bicycle rack")
)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_table_in_a_file_and_a_drawn_one_on_a_terminal():
    plain, terminal = io.StringIO(), Terminal()
    print_report(METRICS, plain)
    print_report(METRICS, terminal)
    assert plain.getvalue() == f"{METRICS}\n"
    assert "┃" in terminal.getvalue()
    for text in (plain.getvalue(), terminal.getvalue()):
        assert all(word in text for word in ("bicycle rack", "50.00", "40.00", "mIoU 45.00 %"))


def test_confusion_as_text_is_normalised_by_rows():
    header, sky, road, absent = confusion_text(METRICS).splitlines()[2:]
    assert header.split() == ["0", "1", "2"]
    assert sky.split() == ["0", "sky", "75.0", "25.0", "0.0"]
    assert road.split() == ["1", "road", "50.0", "50.0", "0.0"]
    assert absent.split() == ["2", "bicycle", "rack", "-", "-", "-"]


def test_files(tmp_path):
    written = write_report(METRICS, tmp_path / "new" / "folder", {"dataset": "toys"})
    assert [path.name for path in written] == [
        "metrics.json",
        "confusion_matrix.txt",
        "confusion_matrix.png",
    ]
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(p.name for p in written)
    record = json.loads(written[0].read_text())
    assert record["dataset"] == "toys"
    assert record["mean_iou"] == pytest.approx(0.45)
    assert record["confusion"] == METRICS.confusion.tolist()


def test_picture_is_dark_on_the_diagonal_and_grey_for_an_absent_class(tmp_path):
    counts = torch.tensor([[9, 0, 0], [0, 9, 0], [0, 0, 0]])
    draw_confusion(SegmentationMetrics(counts, ("a", "b", "c")), tmp_path / "c.png")
    colors = {color for _, color in Image.open(tmp_path / "c.png").convert("RGB").getcolors(10**6)}
    darkest, lightest, absent = (8, 48, 107), (247, 251, 255), (235, 235, 235)
    assert {darkest, lightest, absent} <= colors


def test_many_classes_get_smaller_cells(tmp_path, monkeypatch):
    draw_confusion(METRICS, tmp_path / "few.png")
    monkeypatch.setattr("openseg.engine.evaluation_report._MOST_CLASSES_WITH_FIGURES", 2)
    draw_confusion(METRICS, tmp_path / "many.png")
    assert Image.open(tmp_path / "many.png").width < Image.open(tmp_path / "few.png").width


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken: a file is in the way"):
        write_report(METRICS, tmp_path / "taken")


def test_a_failed_write_keeps_the_last_good_file(tmp_path, monkeypatch):
    write_report(METRICS, tmp_path)
    before = (tmp_path / "metrics.json").read_text()

    def full(self, *args, **kwargs):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OutputError, match=r"metrics\.json: cannot be written: No space left"):
        write_report(METRICS, tmp_path)
    assert (tmp_path / "metrics.json").read_text() == before
    assert len(os.listdir(tmp_path)) == 3


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    load = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r'pip install "openseg\[plot\]"'):
        draw_confusion(METRICS, tmp_path / "c.png")
