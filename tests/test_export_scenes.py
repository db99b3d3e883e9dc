# SPDX-License-Identifier: MIT
import sys

import numpy as np
import pytest

from openseg import export_scenes
from openseg.data import ContextScenes, FolderDataset
from openseg.errors import OutputError


def export(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["export_scenes", *map(str, arguments)])
    export_scenes.main()


def test_written_scenes_are_read_back_as_a_folder(tmp_path, monkeypatch):
    export(monkeypatch, "--output", tmp_path, "--count", 2, "--size", 32, 48, "--split", "train")
    scenes, folder = ContextScenes((32, 48), 2), FolderDataset(tmp_path, "train")
    assert folder.info.classes == scenes.info.classes
    assert len(folder) == 2
    for index in range(2):
        np.testing.assert_array_equal(folder.load(index).image, scenes.load(index).image)
        np.testing.assert_array_equal(folder.load(index).label, scenes.load(index).label)


def test_an_output_that_is_a_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken"):
        export(monkeypatch, "--output", tmp_path / "taken")


@pytest.mark.parametrize("wrong", [("--count", "0"), ("--size", "16", "64")])
def test_numbers_out_of_range_are_refused(tmp_path, monkeypatch, capsys, wrong):
    with pytest.raises(SystemExit):
        export(monkeypatch, "--output", tmp_path, *wrong)
    assert "at least" in capsys.readouterr().err
