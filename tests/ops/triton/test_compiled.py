# SPDX-License-Identifier: MIT
"""What Triton makes of every kernel for GPUs that are not there.

Registers that do not suffice end in local memory: slow, and said nowhere but here.
"""

import json
import os
import subprocess
import sys

import pytest

from tests.emulator.build import BUILD, ROOT, THOROUGH

CAPABILITIES = ("80", "86", "90") if THOROUGH else ("90",)


@pytest.fixture(scope="module")
def kernels():
    """Compiled by a process that does not interpret; what was compiled is kept."""
    folder = BUILD.parent / "triton"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    amount = "thorough" if THOROUGH else "quick"
    command = [sys.executable, "-m", "tests.ops.triton.compiled", amount, *CAPABILITIES]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_registers_suffice(kernels):
    assert [k for k in kernels if k["spilled"]] == []


def test_shared_memory_suffices(kernels):
    assert [k for k in kernels if k["shared"] > k["most_shared"]] == []


def test_float_sums_have_an_order(kernels):
    assert [k for k in kernels if k["float_atomics"]] == []
