# SPDX-License-Identifier: MIT
"""The folder of a run: who may use it, what is kept."""

import os

import pytest

from openseg.engine.checkpoints import read_checkpoint
from openseg.engine.run_folder import RunFolder
from openseg.errors import CheckpointError, OutputError


def checkpoint(iteration):
    empty = {key: {} for key in ("model", "state_dict", "meta", "config", "metrics")}
    return {**empty, "ema": None, "training": {"iteration": iteration}}


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "one", keep=2)
    folder.prepare()
    return folder


def test_last_best_and_the_newest_of_the_others_are_kept(folder):
    for iteration in (2, 4, 6):
        folder.save("last", checkpoint(iteration))
    folder.save("best", checkpoint(6))
    names = sorted(path.name for path in folder.checkpoints.iterdir())
    assert names == ["best.pt", "iteration_00000004.pt", "iteration_00000006.pt", "last.pt"]
    assert read_checkpoint(folder.last)["training"] == {"iteration": 6}
    assert read_checkpoint(folder.checkpoints / names[1])["training"] == {"iteration": 4}
    assert read_checkpoint(folder.checkpoints / "best.pt")["training"] is None


def test_a_run_resumed_from_before_its_last_checkpoints_keeps_what_it_saves(folder):
    for iteration in (2, 8, 12, 4, 6):
        folder.save("last", checkpoint(iteration))
        assert (folder.checkpoints / f"iteration_{iteration:08d}.pt").exists()
    names = sorted(path.name for path in folder.checkpoints.glob("iteration_*.pt"))
    assert names == ["iteration_00000004.pt", "iteration_00000006.pt"]


def test_auto_resumes_the_last_checkpoint_or_starts(folder):
    assert folder.checkpoint_to_resume(None) is None
    assert folder.checkpoint_to_resume("auto") is None
    folder.save("last", checkpoint(3))
    assert folder.checkpoint_to_resume(None) is None
    assert folder.checkpoint_to_resume("auto")["training"]["iteration"] == 3
    assert folder.checkpoint_to_resume(str(folder.last))["training"]["iteration"] == 3


def test_a_best_of_a_later_part_of_the_run_is_not_taken_for_that_of_the_checkpoint(folder):
    assert not folder.has_best(0.3)
    folder.save("best", {**checkpoint(6), "metrics": {"mean_iou": 0.4}})
    assert folder.has_best(0.4)
    assert not folder.has_best(0.3)


def test_what_cannot_be_resumed(folder):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        folder.checkpoint_to_resume("nowhere.pt")
    folder.save("best", checkpoint(3))
    with pytest.raises(CheckpointError, match=r"no state of training .* model\.weights="):
        folder.checkpoint_to_resume(str(folder.checkpoints / "best.pt"))


def test_a_used_folder_needs_a_word(folder, tmp_path):
    RunFolder(tmp_path / "new").check_free()
    with pytest.raises(OutputError, match=r"run\.resume=auto.*run\.overwrite=true.*run\.folder"):
        folder.check_free()
    folder.check_free(resume="auto")
    folder.check_free(resume=str(folder.last))
    folder.check_free(overwrite=True)
    with pytest.raises(OutputError, match="is not empty"):
        folder.check_free(resume=str(tmp_path / "other" / "last.pt"))


def test_overwrite_removes_what_runs_write_and_nothing_else(folder):
    (folder.path / "metrics.jsonl").write_text("{}")
    (folder.path / "thesis.tex").write_text("mine")
    folder.save("last", checkpoint(3))
    folder.prepare(overwrite=True)
    assert not folder.last.exists()
    assert sorted(path.name for path in folder.path.iterdir()) == ["checkpoints", "thesis.tex"]


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        RunFolder(tmp_path / "file").check_free()
    with pytest.raises(OutputError):
        RunFolder(tmp_path / "file" / "run").prepare()
    if os.geteuid() != 0:  # root may write anywhere
        tmp_path.chmod(0o500)
        with pytest.raises(OutputError):
            RunFolder(tmp_path / "run").prepare()
