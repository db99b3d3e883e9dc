# SPDX-License-Identifier: MIT
"""collect_env: plain facts, and each operator with the truth about its backends."""

import json
import subprocess
import sys

from openseg import _ext, ops
from openseg.engine import environment


def test_table_lists_every_operator():
    table = environment.operator_table()
    assert set(table) == {name for name in ops.__all__ if name.islower()}
    for states in table.values():
        assert states["reference"] == "available"
    expected = "available" if _ext.reason is None else _ext.reason
    assert table["upsample_argmax"]["cpp"] == expected


def test_json_and_text_of_the_command():
    command = [sys.executable, "-m", "openseg.collect_env"]
    facts = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)
    assert facts["kernels"] == (_ext.reason or "loaded")
    assert facts["operators"] == environment.operator_table()
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "upsample_argmax\n  reference   available" in text
