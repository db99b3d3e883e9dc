# SPDX-License-Identifier: MIT
"""One command on a machine with an NVIDIA GPU: `python -m pytest tests/gpu`.

Everything is skipped where there is none, and each test of a backend that cannot run, with its
reason. `python benchmarks/run_gpu.py sanitizers` runs the small cases under compute-sanitizer, for
races and accesses out of bounds, which only the hardware sees.
"""

import os

import pytest
import torch


def pytest_collection_modifyitems(items):
    """Marks what lies here."""
    if torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        return
    for item in items:
        if "tests/gpu/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason="there is no GPU, or Triton is interpreted"))


@pytest.fixture(autouse=True)
def no_tf32():
    """float32 is compared with float64 by the error of plain float32."""
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.cudnn.conv.fp32_precision = "ieee"


@pytest.fixture(autouse=True)
def next_test_has_a_gpu():
    """After an error of the GPU no call of the process succeeds: pytest-xdist starts another.

    After a capture that failed its stream stays the current one, and torch's generator captures on.
    """
    yield
    try:
        torch.cuda.synchronize()
        assert torch.cuda.current_stream() == torch.cuda.default_stream(), "a capture failed"
    except (RuntimeError, AssertionError):
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)
        raise
