# SPDX-License-Identifier: MIT
"""collect_env: plain facts, and each operator with the truth about its backends."""

import json
import subprocess
import sys

import torch

from openseg import _ext, ops
from openseg.engine import environment


def test_table_lists_every_operator():
    table = environment.operator_table()
    assert set(table) == {name for name in ops.__all__ if name.islower()}
    for states in table.values():
        assert states["reference"] == "available"
    expected = "available" if _ext.reason is None else _ext.reason
    assert {states["cpp"] for states in table.values()} == {expected}


def test_state_of_cuda_is_what_a_call_finds():
    states = {states["cuda"] for states in environment.operator_table().values()}
    if _ext.reason is not None:
        assert states == {_ext.reason}
    elif not _ext.with_cuda:
        assert states == {_ext.NO_CUDA}
    elif torch.cuda.is_available():
        assert states == {"available"}
        ops.upsample_argmax(torch.zeros(1, 2, 3, 3, device="cuda"), (5, 5), backend="cuda")
    else:
        assert states == {"torch finds no NVIDIA GPU here"}


def test_json_and_text_of_the_command():
    command = [sys.executable, "-m", "openseg.collect_env"]
    facts = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)
    assert facts["kernels"] == (_ext.reason or "loaded")
    assert facts["operators"] == environment.operator_table()
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "upsample_argmax\n  reference   available" in text
