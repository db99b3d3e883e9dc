# SPDX-License-Identifier: MIT
"""Output folders and files that are there whole or not at all.

A file is written beside its final place and then moved over it, so a full disk or an interrupt
never leaves half a result and never costs the last good one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openseg.errors import OutputError


def make_folder(folder: str | Path) -> Path:
    """Create a folder for output; OutputError where that is impossible or it cannot be written."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(f"{folder}: a file is in the way; name a folder for output") from error
    except OSError as error:
        raise OutputError(f"{folder}: cannot be created: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{folder}: no permission to write; choose another output folder")
    return folder


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path of the same suffix to write to; it becomes `path` on success.

    OutputError where writing fails, with the temporary file removed and an older `path` untouched.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, OutputError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__ or error
        reason = getattr(cause, "strerror", None) or cause
        raise OutputError(f"{path}: cannot be written: {reason}") from error
    finally:
        temporary.unlink(missing_ok=True)
