# SPDX-License-Identifier: MIT
import importlib.util

import pytest
import torch


def pytest_collection_modifyitems(items):
    """Marks what lies here."""
    reason = None
    if importlib.util.find_spec("triton") is None:
        reason = "Triton is not installed"
    elif torch.cuda.is_available():
        reason = "tests/gpu runs the kernels on the GPU"
    for item in items:
        if reason and "tests/ops/triton/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=reason))
