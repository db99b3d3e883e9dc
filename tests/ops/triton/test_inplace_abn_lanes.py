# SPDX-License-Identifier: MIT
"""Neighbouring lanes of a warp read and write neighbours in memory, on maps of an odd size too.

Triton chooses the order of lanes by what it can prove of the addresses, and says it in no result.
Run as a module, it prints what it chose for a GPU that is not there.
"""

import json
import os
import re
import subprocess
import sys

import torch

from tests.emulator.build import BUILD, ROOT

FORMATS = {"contiguous": "pixels", "channels_last": "channels"}


def neighbours(ttgir):
    """What the lanes of a warp are neighbours in, for each access to a block of a map."""
    orders = dict(re.findall(r"(#\w+) = #ttg\.blocked<\{.*order = \[(\d), ", ttgir))
    accesses = re.findall(r"tt\.(?:load|store) .*tensor<\d+x\d+x!tt\.ptr<bf16>, (#\w+)>", ttgir)
    return [("pixels", "channels")[int(orders[layout])] for layout in accesses]


def test_lanes_are_neighbours_in_memory():
    folder = BUILD.parent / "triton"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    command = [sys.executable, "-m", "tests.ops.triton.test_inplace_abn_lanes"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    for format, expected in FORMATS.items():
        assert found[format] == {
            "inplace_abn_statistics_kernel": [expected],
            "inplace_abn_kernel": [expected] * 2,
            "inplace_abn_sums_kernel": [expected] * 2,
            "inplace_abn_backward_kernel": [expected] * 3,
        }


if __name__ == "__main__":
    from tests.ops.triton.compiled import compile_only, inplace_abn

    told = {}
    for format in FORMATS:
        configurations = [([inplace_abn], torch.bfloat16, format == "channels_last", {})]
        kernels = compile_only(90, configurations)
        lanes = {name: neighbours(kernel.asm["ttgir"]) for name, kernel in kernels}
        told[format] = {name: found for name, found in lanes.items() if found}
    json.dump(told, sys.stdout)
