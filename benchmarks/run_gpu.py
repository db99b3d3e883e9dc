# SPDX-License-Identifier: MIT
"""Everything that needs a GPU, in one command: `make gpu`, or `python benchmarks/run_gpu.py STEP…`.

Steps run one after the other, those that tell most first, whatever became of those before. Each
leaves its outcome in benchmarks/results/gpu.jsonl, a benchmark every case as soon as it is
measured, and nothing is timed that is wrong. Each operator is measured in a process of its own:
after an error of the GPU a process has lost it. With `--minutes` no command gets more than half of
what is left but in the last step; what fails is listed at the end.
"""

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import _timing
import bench_attention
import bench_ops
import bench_step
import torch

from openseg import _ext

HERE = Path(__file__).parent
TESTS = [sys.executable, "-m", "pytest", "-rfEs", "--tb=short", "--show-capture=no"]
# what is right comes before how it behaves
ORDER = ("primitives", "values", "behaviour", "fastest")
ALL_TESTS = ["-vv", *(f"tests/gpu/test_{name}.py" for name in ORDER)]
RACES_AND_BOUNDS = ["tests/gpu/test_values.py", "-k", "small and cuda"]
WORKERS = "8"  # one GPU waits for the compilers of many
ONE_COMPILER = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "2"}  # for each of them
MOST = 120  # seconds for one benchmark, should it hang
GRACE = 15  # seconds for a command that is asked to stop: pytest tells what failed so far
deadline = float("inf")  # of time.monotonic()
share = 1.0  # of what is left until then, for one command


def run(
    command: list[str], most: float = threading.TIMEOUT_MAX, **environment: str
) -> tuple[bool, str]:
    """Whether the command succeeds, and its last line; what it says is shown as it comes.

    It is stopped after `most` seconds, or when its share of the time is over.
    """
    print("+", *command, flush=True)
    last, over = "", threading.Event()
    with subprocess.Popen(
        command,
        cwd=HERE.parent,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # a kernel that hangs is stopped with all who wait for it
    ) as process:
        left = max(share * (deadline - time.monotonic()) - GRACE, 1)

        def stop() -> None:
            over.set()
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            with contextlib.suppress(ProcessLookupError):  # nobody is left
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(min(left, most), stop)
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
    if over.is_set():
        last = f"stopped, the time is over: {last}"
    return process.returncode == 0, last


def tests(selection: str) -> bool:
    helpers = []
    if importlib.util.find_spec("xdist"):  # every test may cost a worker its GPU
        helpers += ["-n", WORKERS, "--max-worker-restart=1000"]
    if importlib.util.find_spec("pytest_timeout"):  # a test whose kernel hangs ends its worker
        helpers += ["--timeout=60", "--timeout-method=thread"]
    passed, outcome = run([*TESTS, *helpers, *ALL_TESTS, "-k", selection], **ONE_COMPILER)
    _timing.append({**_timing.machine("cuda"), "tests": outcome, "of": selection}, "gpu")
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


def benchmark(script: str, subjects: Iterable[str], *options: str) -> bool:
    command = [sys.executable, str(HERE / script), "--device", "cuda", "--record", "gpu"]
    outcomes = [run([*command, *options, "--only", name], MOST) for name in subjects]
    return all(passed for passed, _ in outcomes)


def attention(*peers: str) -> bool:
    return benchmark("bench_attention.py", bench_attention.OURS, "--peers", *peers)


def others(*peers: str) -> bool:
    return benchmark("bench_ops.py", bench_ops.CASES, "--peers", *peers)


STEPS = {
    "tests": lambda: tests("not triton"),
    "attention": lambda: attention("eager", "sdpa"),
    "ops": lambda: others("eager", "bincount"),
    "steps": lambda: benchmark("bench_step.py", bench_step.NETWORKS),
    # minutes of compiling for seconds of running
    "triton": lambda: tests("triton"),
    "sanitizers": sanitizers,
    "compilers": lambda: attention("compile", "flex") & others("compiled"),
}


def main() -> None:
    global deadline, share
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"{', '.join(STEPS)}; or all")
    parser.add_argument("--minutes", type=float, help="how long it may take")
    options = parser.parse_args()
    if unknown := set(options.steps) - STEPS.keys():
        parser.error(f"no step {', '.join(sorted(unknown))}: there are {', '.join(STEPS)}")
    if not torch.cuda.is_available():
        raise SystemExit("torch finds no GPU here: python -m openseg.collect_env")
    obstacle = _ext.reason or (None if _ext.with_cuda else _ext.NO_CUDA)
    if obstacle := obstacle or _ext.gpu_obstacle(torch.device("cuda")):
        raise SystemExit(obstacle)  # tests would be skipped, and Triton timed
    if options.minutes is not None:
        deadline = time.monotonic() + 60 * options.minutes
    failed, steps = [], options.steps or list(STEPS)
    for step in steps:
        start = time.monotonic()
        share = 1.0 if step == steps[-1] else 0.5
        if start > deadline:
            failed.append(f"{step} (no time)")
        elif not STEPS[step]():
            failed.append(step)
        print(f"{step}: {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
