# SPDX-License-Identifier: MIT
"""Everything that needs a GPU, in one command: `make gpu`, or `python benchmarks/run_gpu.py STEP…`.

Steps run one after the other, whatever became of those before, and leave their outcome in
benchmarks/results/gpu.jsonl: tests/gpu, its small cases under compute-sanitizer, and the
benchmarks, which time nothing that is wrong. What fails is listed at the end.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import _timing

HERE = Path(__file__).parent
TESTS = [sys.executable, "-m", "pytest", "-rfEs", "--tb=short"]
RACES_AND_BOUNDS = ["tests/gpu/test_values.py", "-k", "small and cuda"]
WORKERS = "8"  # one GPU waits for the compilers of many


def run(command: list[str], **environment: str) -> tuple[bool, str]:
    """Whether the command succeeds, and its last line; what it says is shown as it comes."""
    print("+", *command, flush=True)
    last = ""
    with subprocess.Popen(
        command,
        cwd=HERE.parent,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode == 0, last


def tests() -> bool:
    workers = ["-n", WORKERS] if importlib.util.find_spec("xdist") else []
    passed, outcome = run([*TESTS, *workers, "tests/gpu"])
    _timing.append({**_timing.machine("cuda"), "tests": outcome}, "gpu")
    return passed


def sanitizers() -> bool:
    """Only our kernels are watched: torch's make the other side of a comparison."""
    sanitizer = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if sanitizer is None:
        print("compute-sanitizer was not found: it comes with CUDA")
        return False
    clean = True
    for tool in ("memcheck", "racecheck"):
        watch = [sanitizer, "--tool", tool, "--kernel-regex", "kns=openseg", "--error-exitcode=1"]
        # every tensor in an allocation of its own, whose bounds memcheck knows
        passed, outcome = run(
            [*watch, *TESTS, *RACES_AND_BOUNDS], PYTORCH_NO_CUDA_MEMORY_CACHING="1"
        )
        _timing.append({**_timing.machine("cuda"), tool: outcome, "clean": passed}, "gpu")
        clean &= passed
    return clean


def benchmark(script: str) -> bool:
    return run([sys.executable, str(HERE / script), "--device", "cuda", "--record", "gpu"])[0]


STEPS = {
    "tests": tests,
    "sanitizers": sanitizers,
    "ops": lambda: benchmark("bench_ops.py"),
    "attention": lambda: benchmark("bench_attention.py"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"{', '.join(STEPS)}; or all")
    steps = parser.parse_args().steps or list(STEPS)
    if unknown := set(steps) - STEPS.keys():
        parser.error(f"no step {', '.join(sorted(unknown))}: there are {', '.join(STEPS)}")
    failed = [step for step in steps if not STEPS[step]()]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
