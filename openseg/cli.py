# SPDX-License-Identifier: MIT
"""What all entry points share: running `main` with readable errors and the right exit status."""

import argparse
import os
import signal
import sys
from collections.abc import Callable

from openseg.errors import OpensegError


def run(main: Callable[[], int | None]) -> None:
    """Run an entry point and leave the process.

    An `OpensegError` becomes one `error: …` text on stderr and exit status 2; an interrupt from
    the keyboard becomes status 130, and a reader that closed the pipe behind stdout, such as
    `head`, 141. Any other exception is a defect and keeps its traceback.
    """
    # torch, which reads it at its first allocation, then has large pages for tensors of 2 MiB and
    # more on a CPU: fresh memory otherwise costs a page fault for each 4 KiB.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        status = _status(main)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still buffered would fail again when the interpreter flushes it at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    sys.exit(status)


def _status(main: Callable[[], int | None]) -> int | str | None:
    try:
        return main()
    except OpensegError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except SystemExit as request:  # of argparse, whose help may still be in the buffer
        return request.code


def at_least_one(text: str) -> int:
    """A whole number above 0, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of 1 or more")
    return int(text)


def height_and_width(text: str) -> tuple[int, int]:
    """A size in pixels, as the type of an argument."""
    try:
        height, width = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HEIGHT,WIDTH in pixels") from None
    return height, width
