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

CAPABILITIES = ("80", "86", "89", "90", "100", "120")


def compiled(configurations, *capabilities):
    """By a process that does not interpret; what was compiled is kept."""
    folder = BUILD.parent / "triton"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    module = "tests.ops.triton.compiled"
    command = [sys.executable, "-m", module, configurations, *capabilities]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def kernels():
    return compiled("thorough", *CAPABILITIES) if THOROUGH else compiled("quick", "90")


@pytest.fixture(scope="module")
def wide_kernels():
    return compiled("thorough wide", *CAPABILITIES) if THOROUGH else compiled("wide", "86")


def test_registers_suffice(kernels):
    # ptxas for Blackwell may keep two words beside a loop in memory: more programs run at once then
    assert [k for k in kernels if k["spilled"] > (8 if k["capability"] >= 100 else 0)] == []


def test_shared_memory_suffices(kernels, wide_kernels):
    assert [k for k in kernels + wide_kernels if k["shared"] > k["most_shared"]] == []


def test_float_sums_have_an_order(kernels):
    assert [k for k in kernels if k["float_atomics"]] == []
