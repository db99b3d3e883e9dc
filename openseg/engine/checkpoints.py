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
import pickle
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from openseg.errors import CheckpointError

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
        raise CheckpointError(f"{path}: is no file; name a checkpoint, such as {path / 'last.pt'}")
    contents = _load(path)
    foreign = "load parameters of other packages with model.weights=… or openseg.load_weights"
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is no checkpoint of openseg; {foreign}")
    version = contents.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise CheckpointError(
            f"{path}: has format version {version}, and this openseg reads up to {VERSION}; "
            "upgrade openseg"
        )
    missing = sorted(_KEYS - contents.keys())
    if missing:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}; it was not saved by openseg")
    return contents


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: holds more than tensors and plain types, or is damaged; "
            "openseg saves and loads nothing else"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path}: is damaged or cut short ({size:,} bytes: {str(error).partition('. ')[0]}); "
            "copy it again, or use another checkpoint of the run"
        ) from error


def _neighbours(path: Path) -> str:
    names = sorted(file.name for file in path.parent.glob("*.pt"))
    return f"; beside it are {', '.join(names)}" if names else ""
