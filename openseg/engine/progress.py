# SPDX-License-Identifier: MIT
"""Progress over a known number of images: a bar on a terminal, ten lines in a log."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

Progress = Callable[[int, int], None]


@contextmanager
def show_progress(description: str, stream: TextIO | None = None) -> Iterator[Progress]:
    """Gives the function to call with (done, all) after each image; writes to stderr by default."""
    stream = stream or sys.stderr
    if stream.isatty():
        yield from _bar(description, stream)
    else:
        yield _lines(description, stream)


def _bar(description: str, stream: TextIO) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (*Bar.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, TimeElapsedColumn(), console=Console(file=stream)) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(description: str, stream: TextIO) -> Progress:
    def report(done: int, total: int) -> None:
        if 10 * done // total > 10 * (done - 1) // total:
            print(f"{description}: {done}/{total}", file=stream, flush=True)

    return report
