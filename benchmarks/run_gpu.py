# SPDX-License-Identifier: MIT
"""Everything that needs a GPU, in one command: `make gpu`, or `python benchmarks/run_gpu.py STEP…`.

Steps run one after the other, those that tell most first, whatever became of those before. Each
leaves its outcome in benchmarks/results/gpu.jsonl, a benchmark every case as soon as it is
measured, and nothing is timed that is wrong. With `--minutes` the step that runs out of time is
stopped, and the rest is left out; what fails is listed at the end.
"""

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import _timing
import torch

HERE = Path(__file__).parent
TESTS = [sys.executable, "-m", "pytest", "-rfEs", "--tb=short", "--show-capture=no"]
# what is right comes before how it behaves
ALL_TESTS = ["-vv", *(f"tests/gpu/test_{name}.py" for name in ("values", "behaviour", "fastest"))]
RACES_AND_BOUNDS = ["tests/gpu/test_values.py", "-k", "small and cuda"]
WORKERS = "8"  # one GPU waits for the compilers of many
deadline = float("inf")  # of time.monotonic()


def run(command: list[str], **environment: str) -> tuple[bool, str]:
    """Whether the command succeeds, and its last line; what it says is shown as it comes."""
    print("+", *command, flush=True)
    last = ""
    with subprocess.Popen(
        command,
        cwd=HERE.parent,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a kernel that hangs is stopped with all who wait for it
    ) as process:
        left = min(deadline - time.monotonic(), threading.TIMEOUT_MAX)
        timer = threading.Timer(left, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                last = line.strip() or last
            process.wait()
        finally:
            timer.cancel()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode == -signal.SIGKILL:
        last = f"stopped, the time is over: {last}"
    return process.returncode == 0, last


def tests() -> bool:
    helpers = ["-n", WORKERS] if importlib.util.find_spec("xdist") else []
    if importlib.util.find_spec("pytest_timeout"):  # a test whose kernel hangs ends its worker
        helpers += ["--timeout=180", "--timeout-method=thread"]
    passed, outcome = run([*TESTS, *helpers, *ALL_TESTS])
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


def benchmark(script: str, *options: str) -> bool:
    command = [sys.executable, str(HERE / script), "--device", "cuda", "--record", "gpu"]
    return run([*command, *options])[0]


STEPS = {
    "tests": tests,
    "ops": lambda: benchmark("bench_ops.py"),
    "attention": lambda: benchmark("bench_attention.py", "--peers", "eager", "sdpa"),
    "sanitizers": sanitizers,
    # minutes of compiling for seconds of measuring
    "compilers": lambda: benchmark("bench_attention.py", "--peers", "compile", "flex"),
}


def main() -> None:
    global deadline
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"{', '.join(STEPS)}; or all")
    parser.add_argument("--minutes", type=float, help="how long it may take")
    options = parser.parse_args()
    if unknown := set(options.steps) - STEPS.keys():
        parser.error(f"no step {', '.join(sorted(unknown))}: there are {', '.join(STEPS)}")
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here: python -m openseg.collect_env")
    if options.minutes is not None:
        deadline = time.monotonic() + 60 * options.minutes
    failed = []
    for step in options.steps or STEPS:
        start = time.monotonic()
        if start > deadline:
            failed.append(f"{step} (no time)")
        elif not STEPS[step]():
            failed.append(step)
        print(f"{step}: {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
