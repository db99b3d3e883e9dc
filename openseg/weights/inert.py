# SPDX-License-Identifier: MIT
"""Old checkpoint files without the Python objects in them: nothing that a file names is run.

A pickle names the classes and functions that rebuild it. Here those that rebuild tensors are found,
and every other name is answered with a class that takes anything and does nothing.
"""

import pickle
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from openseg.weights.reading import Weights, check_kind, damaged, unwrap

_REBUILDING = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


class Inert:
    """Stands for an object of the file: it can be made, called and filled, and keeps nothing."""

    def __new__(cls, *args: Any, **options: Any) -> "Inert":
        return object.__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __call__(self, *args: Any) -> "Inert":
        return self

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def ignore(self, values: Any) -> None:
        pass

    __setstate__ = append = extend = add = update = ignore


def read_without_objects(path: str | Path) -> tuple[Weights, list[str]]:
    """The tensors and plain types of a file of `torch.save`, and the names that were left out.

    Raises CheckpointError as `read_weights` does, but not for objects.
    """
    path = Path(path)
    check_kind(path)
    left_out: set[str] = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in _REBUILDING:
                return super().find_class(module, name)
            dtype = getattr(torch, name, None) if module == "torch" else None
            if isinstance(dtype, torch.dtype):
                return dtype
            left_out.add(f"{module}.{name}")
            return Inert

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    reader = ModuleType("inert_pickle")
    reader.__dict__.update(Unpickler=Unpickler, load=load)
    try:
        content = torch.load(path, map_location="cpu", pickle_module=reader, weights_only=False)
    except (
        *(EOFError, KeyError, OSError, RuntimeError, ValueError, TypeError, AttributeError),
        *(IndexError, UnicodeDecodeError, pickle.UnpicklingError, zipfile.BadZipFile),
    ) as error:
        raise damaged(path, error) from error
    return unwrap(content, str(path)), sorted(left_out)
