# SPDX-License-Identifier: MIT
"""Reading of checkpoint files: tensors and plain types, never code.

`torch.load` is used with `weights_only=True` alone; what that refuses, `openseg.weights.inert`
reads without its objects.
"""

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from openseg.errors import CheckpointError

METADATA_KEY = "openseg"
"""Of the JSON in a `.safetensors` file's metadata: {"version", "model", "meta"}."""

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_ZIP = b"PK\x03\x04"
_BEFORE_1_6 = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # what torch began with


class Weights(NamedTuple):
    """The tensors of a file and, as far as it tells them, "classes", "palette" and "normalize"
    (`meta`) and the arguments of `create_model` (`model`)."""

    state_dict: dict[str, Tensor]
    meta: dict[str, Any]
    model: dict[str, Any] | None = None


def read_weights(path: str | Path) -> Weights:
    """What is in a `.safetensors` file, or in one that `torch.save` wrote.

    Of a training checkpoint of this package it is the averaged weights ("ema") where there are
    any; of a foreign one the entry "state_dict" or "model".

    Raises:
        CheckpointError: the file is missing, damaged, of another kind, or holds more than tensors
            and plain types.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        state_dict, metadata = read_safetensors(path)
        return Weights(state_dict, metadata.get("meta", {}), metadata.get("model"))
    return unwrap(load_plain(path), str(path))


def load_plain(path: Path) -> Any:
    """The tensors and plain types that `torch.save` wrote; raises CheckpointError."""
    check_kind(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise damaged(path, error) from error
        raise CheckpointError(
            f"{path}: holds Python objects beside its tensors ({found[1]}), and making those would "
            f"run code that the file names. `python -m openseg.convert {path.name} NEW.safetensors`"
            " takes the tensors out and leaves the objects behind"
        ) from error
    except (EOFError, KeyError, OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        raise damaged(path, error) from error


def check_kind(path: Path) -> None:
    """Raises CheckpointError for a file that is missing or that `torch.save` did not write."""
    _check_file(path)
    try:
        with path.open("rb") as file:
            start = file.read(len(_BEFORE_1_6))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if not start:
        raise damaged(path, EOFError("it is empty"))
    is_checkpoint = start == _BEFORE_1_6 or start.startswith(_ZIP)
    if start.startswith(_ZIP) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            is_checkpoint = any(name.endswith("data.pkl") for name in archive.namelist())
    if not is_checkpoint:
        raise CheckpointError(
            f"{path}: not a file that torch.save wrote ({path.stat().st_size:,} bytes that begin "
            f"with {start[:8]!r}); name one of those or a .safetensors file"
        )


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; name the checkpoint file in it")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")


def damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CheckpointError(
        f"{path}: is damaged or cut short ({path.stat().st_size:,} bytes: "
        f"{reason.partition('. ')[0]}); compare its size with the original's and copy it again"
    )


def unwrap(content: Any, name: str) -> Weights:
    """The state dict inside what a checkpoint holds; `name` is for the error's text."""
    if isinstance(content, Mapping):
        meta, model = _meta_of(content), None
        if content.get("format") == "openseg":
            model = content.get("model")
            content = content.get("ema") or content["state_dict"]
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
        tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if tensors:
            return Weights(tensors, meta, model)
    raise CheckpointError(
        f"{name}: no state dict in it; expected a mapping from names to tensors, bare or under "
        f"one of {', '.join(_WRAPPERS)}, found {type(content).__name__}"
    )


def _meta_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """From our checkpoints, and from those of mmsegmentation 1.x and 0.x."""
    meta = content.get("meta")
    if not isinstance(meta, Mapping):
        return {}
    meta = meta.get("dataset_meta", meta)
    found = {key: meta.get(key, meta.get(key.upper())) for key in ("classes", "palette")}
    found |= {key: meta.get(key) for key in ("normalize", "flip_pairs")}
    return {key: value for key, value in found.items() if value is not None}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors, and {"version", "model", "meta"} where this package wrote the file."""
    from safetensors import SafetensorError, safe_open

    _check_file(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
