# SPDX-License-Identifier: MIT
"""Checkpoints: written whole or not at all, and readable errors for what is no checkpoint."""

import resource
import signal
import zipfile

import pytest
import torch

from openseg.engine.checkpoints import read_checkpoint, save_checkpoint
from openseg.errors import CheckpointError

CHECKPOINT = {
    "model": {"name": "fcn"},
    "state_dict": {"weight": torch.arange(6.0).reshape(2, 3)},
    "ema": None,
    "meta": {"classes": ["a", "b"], "normalize": {"mean": [0.5]}},
    "training": {"iteration": 3, "random": [[1, 2**40], None]},
    "config": {"train": {"lr": 0.1}},
    "metrics": {"mean_iou": 0.5},
}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, CHECKPOINT)
    return path


def test_what_is_saved_is_read(saved):
    checkpoint = read_checkpoint(saved)
    assert checkpoint["format"] == "openseg"
    assert torch.equal(checkpoint["state_dict"]["weight"], CHECKPOINT["state_dict"]["weight"])
    del checkpoint["state_dict"]
    assert checkpoint.items() >= {k: v for k, v in CHECKPOINT.items() if k != "state_dict"}.items()
    assert [file.name for file in saved.parent.iterdir()] == ["last.pt"]


def test_missing_file_names_its_neighbours(saved):
    with pytest.raises(CheckpointError, match=r"no such checkpoint; beside it are last\.pt"):
        read_checkpoint(saved.with_name("lst.pt"))


def test_folder(tmp_path):
    with pytest.raises(CheckpointError, match="is no file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file(saved, share):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(saved)


def test_foreign_files(tmp_path):
    path = tmp_path / "foreign.pt"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError, match=r"no checkpoint of openseg.*model\.weights"):
        read_checkpoint(path)
    torch.save({"epoch": object()}, path)
    with pytest.raises(CheckpointError, match=r"Python objects beside its tensors \(object\)"):
        read_checkpoint(path)
    path.write_text("not a checkpoint at all")
    with pytest.raises(CheckpointError, match=r"not a file that torch\.save wrote"):
        read_checkpoint(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    with pytest.raises(CheckpointError, match=r"not a file that torch\.save wrote"):
        read_checkpoint(path)


def test_newer_and_incomplete_files(tmp_path):
    path = tmp_path / "new.pt"
    torch.save({"format": "openseg", "version": 2}, path)
    with pytest.raises(
        CheckpointError, match=r"version 2, and this openseg reads up to 1; upgrade"
    ):
        read_checkpoint(path)
    torch.save({"format": "openseg", "version": 1, "model": {}}, path)
    with pytest.raises(CheckpointError, match="lacks config, ema, meta"):
        read_checkpoint(path)


@pytest.fixture
def small_disk():
    """Writing beyond 64 KiB of a file fails with an OSError, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_leaves_the_last_good_checkpoint(saved, small_disk):
    good = saved.read_bytes()
    large = {**CHECKPOINT, "state_dict": {"weight": torch.zeros(2**18)}}
    with pytest.raises(CheckpointError, match=r"last\.pt: cannot be written: .*MiB are free") as e:
        save_checkpoint(saved, large)
    assert "as it was" in str(e.value)
    assert saved.read_bytes() == good
    assert [file.name for file in saved.parent.iterdir()] == ["last.pt"]


def test_a_folder_is_no_checkpoint(tmp_path):
    path = tmp_path / "checkpoints" / "last.pt"
    path.parent.mkdir()
    path.write_text("")
    for folder in (tmp_path, path.parent):
        with pytest.raises(CheckpointError, match=rf"is no file; .* such as {path}$"):
            read_checkpoint(folder)


def test_folder_that_is_a_file(saved):
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(saved / "last.pt", CHECKPOINT)
