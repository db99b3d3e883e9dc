# SPDX-License-Identifier: MIT
"""Everything that needs a GPU, in one command: `python benchmarks/run_gpu.py`.

Runs tests/gpu and, where they pass, the benchmarks; what was measured is appended to
benchmarks/results/gpu.jsonl.
"""

import subprocess
import sys
from pathlib import Path

import _timing

HERE = Path(__file__).parent


def main() -> None:
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-rs", "tests/gpu"],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    print(tests.stdout[-5000:], tests.stderr[-2000:])
    if tests.returncode != 0:
        raise SystemExit("tests/gpu fails: no figures of kernels that are wrong")
    outcome = tests.stdout.strip().splitlines()[-1]
    _timing.append({**_timing.machine("cuda"), "tests": outcome}, "gpu")
    for script in ("bench_ops.py", "bench_attention.py"):
        command = [sys.executable, str(HERE / script), "--device", "cuda", "--record", "gpu"]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
