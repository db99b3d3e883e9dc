# SPDX-License-Identifier: MIT
"""MATLAB files, by scipy: imported when the first one is read or written."""

from pathlib import Path
from typing import Any

import numpy as np

from openseg.errors import DataError


def load_matlab(path: Path, *names: str) -> dict[str, Any]:
    """The variables of these names, as far as the file has them."""
    _require_scipy(path)
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        return loadmat(path, variable_names=list(names))
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; check the folder") from error
    except (OSError, ValueError, TypeError, NotImplementedError, MatReadError) as error:
        raise DataError(
            f"{path}: cannot be read as a MATLAB file ({error}); copy it again"
        ) from error


def save_matlab(path: Path, **contents: np.ndarray) -> None:
    """Write a compressed file. The suffix is that of `path`, whatever it is."""
    _require_scipy(path)
    from scipy.io import savemat

    savemat(path, contents, appendmat=False, do_compression=True)


def _require_scipy(path: Path) -> None:
    try:
        import scipy.io  # noqa: F401
    except ImportError as error:
        raise DataError(
            f'{path}: MATLAB files need scipy: pip install "openseg[datasets]"'
        ) from error
