# SPDX-License-Identifier: MIT
"""Kernels that are broken on purpose: each is the real source with one mistake of a common kind.

A mode that lets one of them pass has lost its eyes.
"""

from typing import NamedTuple

ASAN = (
    "AddressSanitizer: "
    "(heap-buffer-overflow|heap-use-after-free|SEGV|use-after-poison|unknown-crash)"
)
MISALIGNED = "misaligned address"
RACE_READ = "race, read after write"
RACE_WRITE = "race, write after (read|write)"
UNWRITTEN = "read of shared memory that was never written"
VALUES = "AssertionError"


class Mutant(NamedTuple):
    mistake: str
    mode: str
    report: str  # what the output of the run has to match
    old: str  # occurs once in the source
    new: str
    source: str | None = None  # in csrc, where it is not <operator>/cuda/<operator>.cu
