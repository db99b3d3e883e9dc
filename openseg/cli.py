# SPDX-License-Identifier: MIT
"""What all entry points share: running `main` with readable errors and the right exit status."""

import argparse
import sys
from collections.abc import Callable

from openseg.errors import OpensegError


def run(main: Callable[[], int | None]) -> None:
    """Run an entry point and leave the process.

    An `OpensegError` becomes one `error: …` text on stderr and exit status 2; an interrupt from
    the keyboard becomes status 130. Any other exception is a defect and keeps its traceback.
    """
    try:
        status = main() or 0
    except OpensegError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)


def at_least_one(text: str) -> int:
    """A whole number above 0, as the type of an argument."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of 1 or more")
    return int(text)
