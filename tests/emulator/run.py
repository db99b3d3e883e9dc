# SPDX-License-Identifier: MIT
"""Runs the cases of one operator in a process of its own: `run.py LIBRARY OPERATOR SEED…`.

A broken kernel may overwrite anything, and AddressSanitizer has to be loaded before Python.
"""

import sys

from tests.emulator import operators
from tests.emulator.kernels import Kernels


def main(library: str, operator: str, *seeds: str) -> None:
    for seed in seeds:
        operators.module(operator).check(Kernels(library, int(seed)))


if __name__ == "__main__":
    main(*sys.argv[1:])
