# SPDX-License-Identifier: MIT
"""MATLAB files, by scipy: imported when the first one is read or written."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from openseg.errors import DataError


def load_matlab(path: Path, *names: str) -> dict[str, Any]:
    """The variables of these names, as far as the file has them."""
    scipy_io = _scipy_io(path)
    unreadable = (
        OSError, ValueError, TypeError, NotImplementedError, scipy_io.matlab.MatReadError
    )  # fmt: skip
    try:
        return scipy_io.loadmat(path, variable_names=list(names))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; check the folder") from error
    except unreadable as error:  # what scipy raises for files that are cut off, other or too new
        raise DataError(
            f"{path}: cannot be read as a MATLAB file ({error}); copy it again"
        ) from error


def save_matlab(path: Path, **contents: np.ndarray) -> None:
    """Write a compressed file. The suffix is that of `path`, whatever it is."""
    _scipy_io(path).savemat(path, contents, appendmat=False, do_compression=True)


def _scipy_io(path: Path) -> Any:
    try:
        return importlib.import_module("scipy.io")
    except ImportError as error:
        raise DataError(
            f'{path}: MATLAB files need scipy: pip install "openseg[datasets]"'
        ) from error
