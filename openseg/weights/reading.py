# SPDX-License-Identifier: MIT
"""Tensors out of a checkpoint file; nothing in the file is ever executed."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openseg.errors import CheckpointError

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_MAGIC = (b"P", b"\x80")  # first byte of a zip archive, and of the pickle of torch before 1.6


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` file, or in what `torch.save` wrote.

    Of a training checkpoint of this package it is the averaged weights ("ema") where there are
    any; of a foreign one the entry "state_dict" or "model".

    Raises:
        CheckpointError: the file is missing, damaged, or holds more than tensors and plain types.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    with path.open("rb") as file:
        if file.read(1) not in _MAGIC:
            raise CheckpointError(
                f"{path}: not a file that torch.save wrote; name one of those or a .safetensors"
            )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: the file holds Python objects beside its tensors, and reading those would "
            "run code of the file. If you trust its origin, save its tensors alone: "
            f'torch.save(torch.load("{path.name}", weights_only=False)["state_dict"], "new.pth")'
            f" and load that file. ({str(error).splitlines()[0]})"
        ) from error
    except (EOFError, OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({reason}); the file may be cut short: "
            "compare its size with the original's and copy it again"
        ) from error
    return unwrap(content, str(path))


def unwrap(content: Any, name: str) -> dict[str, Tensor]:
    """The state dict inside what a checkpoint holds; `name` is for the error's text."""
    if isinstance(content, Mapping):
        if content.get("format") == "openseg":
            content = content.get("ema") or content["state_dict"]
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
        tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    raise CheckpointError(
        f"{name}: no state dict in it; expected a mapping from names to tensors, bare or under "
        f"one of {', '.join(_WRAPPERS)}, found {type(content).__name__}"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
