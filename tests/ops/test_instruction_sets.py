# SPDX-License-Identifier: MIT
"""Values of every kernel under each instruction set: a process is bound to one of them.

The process that runs the suite has chosen the best that its processor has.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from openseg import _ext

pytestmark = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))

INSTRUCTION_SETS = ("baseline", "avx2", "avx512", "amx")
CASES = {  # of each file, as pytest selects them
    "confusion_matrix": "numpy_ignore and cpp",
    "inplace_abn_cpp": "saturated or nan or (shape1 and True and not strided)",
    "interlaced_attention": "slices or nan",  # self_attention has the arithmetic
    "large_results": "256-48 or inplace_abn",
    "object_attention": "error_budget or slices or nan or huge",
    "self_attention": "(error_budget and not strided) or slices or infinity or huge or any_scale",
    "spatial_gather": "error_budget or infinity or nan or huge or beside",
    "upsample_argmax": "layouts or half_value or not_finite or many or extreme"
    " or (labels_and_confidence and 19-small and True-cpp)",
    "upsample_cross_entropy_cpp": "(budget and True) or options or ohem or half or extreme"
    " or layouts or finite or bit_equal",
}


def test_the_process_is_bound_to_what_was_asked_for():
    bound = torch.ops.openseg.cpu_capability()
    assert bound == os.environ.get("OPENSEG_CPU", bound)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_each_instruction_set(isa):
    best = torch.ops.openseg.cpu_capability()
    if isa == best:
        pytest.skip(f"the other tests run {isa}")
    if INSTRUCTION_SETS.index(isa) > INSTRUCTION_SETS.index(best):
        pytest.skip(f"this processor cannot run {isa}")
    files = [str(Path(__file__).with_name(f"test_{name}.py")) for name in CASES]
    cases = [f"(test_{name} and ({chosen}))" for name, chosen in CASES.items()]
    command = [sys.executable, "-m", "pytest", "-x", __file__, *files]
    done = subprocess.run(
        [*command, "-k", " or ".join(["bound_to_what_was_asked", *cases])],
        env={**os.environ, "OPENSEG_CPU": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
