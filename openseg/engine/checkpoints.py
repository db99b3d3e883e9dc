# SPDX-License-Identifier: MIT
"""Checkpoints: one file of tensors and plain types, written whole or not at all.

The keys of a checkpoint:

    format, version     "openseg", 1
    model               arguments of `create_model`
    state_dict, ema     parameters and buffers; their averages, or None
    meta                what the labels mean and how images are normalised
    training            what resuming needs, or None (best.pt)
    config, metrics     the run, and its last validation
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from openseg.errors import CheckpointError
from openseg.weights import load_plain, read_safetensors

FORMAT = "openseg"
VERSION = 1
_KEYS = {"model", "state_dict", "ema", "meta", "training", "config", "metrics"}


def save_checkpoint(path: str | Path, checkpoint: dict[str, Any]) -> None:
    """Write a checkpoint; a file of that name is replaced only when the new one is on the disk.

    Raises CheckpointError where it cannot be written; the file of that name is then as it was.
    """
    path = Path(path)
    contents = {"format": FORMAT, "version": VERSION, **checkpoint}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # the zip writer of PyTorch turns one into the other
        raise CheckpointError(_cannot_write(path, error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _cannot_write(path: Path, error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__cause__ or error.__context__ or error
    reason = cause.strerror if isinstance(cause, OSError) else str(cause).partition("\n")[0]
    free = "free space unknown"
    with suppress(OSError):
        free = f"{shutil.disk_usage(path.parent).free / 2**20:,.0f} MiB are free there"
    kept = "the checkpoint of that name is as it was" if path.exists() else "nothing was left there"
    return (
        f"{path}: cannot be written: {reason} ({free}); {kept}. Make room, or choose another folder"
    )


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises CheckpointError for a file that is missing, damaged, not of openseg, or of a newer one.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such checkpoint{_neighbours(path)}")
    if not path.is_file():
        last = next(path.glob("checkpoints/last.pt"), path / "last.pt")
        raise CheckpointError(f"{path}: is no file; name a checkpoint, such as {last}")
    if path.suffix == ".safetensors":
        return _from_safetensors(path)
    contents = load_plain(path)
    foreign = "load parameters of other packages with model.weights=… or openseg.load_weights"
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is no checkpoint of openseg; {foreign}")
    _check_version(path, contents.get("version"))
    missing = sorted(_KEYS - contents.keys())
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}; it was not saved by openseg")
    return contents


def _from_safetensors(path: Path) -> dict[str, Any]:
    """Of `openseg.convert`: the network and its meaning, but no run that it comes from."""
    state_dict, metadata = read_safetensors(path)
    if not {"model", "meta"} <= metadata.keys():
        raise CheckpointError(
            f"{path}: does not say what network its tensors are for, or what the labels mean; "
            "`python -m openseg.convert --model …` writes files that do"
        )
    _check_version(path, metadata.get("version"))
    nothing: dict[str, Any] = dict.fromkeys(_KEYS)
    return {**nothing, **metadata, "format": FORMAT, "state_dict": state_dict}


def _check_version(path: Path, version: Any) -> None:
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(
            f"{path}: has format version {version}, and this openseg reads up to {VERSION}; "
            "upgrade openseg"
        )


def _neighbours(path: Path) -> str:
    names = sorted(file.name for file in path.parent.glob("*.pt"))
    return f"; beside it are {', '.join(names)}" if names else ""
