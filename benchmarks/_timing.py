# SPDX-License-Identifier: MIT
"""Times, peak memory, floors and records for the benchmarks.

The floor of a case is the larger of its bytes over the measured copy bandwidth and its FLOPs over
the measured rate of products, both measured in the same run with the same number of threads.
"""

import ctypes
import datetime
import functools
import json
import platform
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from openseg import _ext

RESULTS = Path(__file__).with_name("results")
LAUNCH_CYCLES = 2_000_000  # of a GPU: a millisecond and more
FLOOR_SECONDS = {"cpu": 1.0, "cuda": 0.3}  # a GPU is idle but for us, and lent by the minute


def median_seconds(function: Callable[[], Any], min_run_time: float = 1.0) -> float:
    """Median over at least `min_run_time` seconds, after one call to warm up; waits for CUDA."""
    function()
    timer = Timer("function()", globals={"function": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=min_run_time).median


def fastest(seconds: float, function: Callable[[], Any]) -> float:
    """The least time of a call in so many seconds, after one to warm up."""
    function()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def cuda_seconds(
    function: Callable[[], Any], cold: bool = True, graphed: bool = False, times: int = 50
) -> float:
    """Median by CUDA events; `cold` writes 256 MiB before each call, more than a cache holds.

    The GPU is kept busy until the processor has launched all of the call.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    call = function
    if graphed:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        call = graph.replay
    filler = torch.empty(1 << 26, device="cuda")
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(times)]
    for start, end in events:
        if cold:
            filler.zero_()
        torch.cuda._sleep(LAUNCH_CYCLES)
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in events) / 1e3


def graph_seconds(function: Callable[[], Any]) -> float:
    """As `cuda_seconds`, of a CUDA graph; RuntimeError where the call cannot be captured."""
    if waits_for_gpu(function):
        raise RuntimeError("waits for the GPU, no graph can have it")
    return cuda_seconds(function, graphed=True)


CUDA_MODES = {"warm": functools.partial(cuda_seconds, cold=False), "graph": graph_seconds}


def waits_for_gpu(function: Callable[[], Any]) -> bool:
    """Whether the call reads a result of the GPU, as confusion_matrix does to check its labels.

    It cannot be captured, and must not be tried: after a capture that failed, torch draws no random
    numbers on the GPU any more.
    """
    torch.cuda.set_sync_debug_mode("error")
    try:
        function()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def peak_bytes(function: Callable[[], Any], device: str) -> int:
    """Memory that one call needs beyond what was there: allocator on CUDA, resident set on CPU.

    On CPU a thread samples the resident set, after the C library was asked to give back free pages;
    buffers below about a megabyte may not show.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    ctypes.CDLL(None).malloc_trim(0)
    done = threading.Event()
    before = highest = resident()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, resident())
            done.wait(0.0002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    result = function()
    highest = max(highest, resident())
    done.set()
    watcher.join()
    del result
    return highest - before


def copy_bandwidth(device: str) -> float:
    """Bytes read and written a second by a copy of 256 MiB."""
    source = torch.randn(1 << 26, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), FLOOR_SECONDS[device])
    return 2 * source.numel() * source.element_size() / seconds


def product_rate(device: str, dtype: torch.dtype) -> float:
    """FLOPs a second of torch's fastest product: matrices of 2048² (8192² on a GPU), a convolution.

    On some processors its matrix products leave half of the vector units idle.
    """
    size = 8192 if device == "cuda" else 2048
    a = torch.randn(size, size, device=device).to(dtype)
    rates = [2 * size**3 / median_seconds(lambda: a @ a, FLOOR_SECONDS[device])]
    if device == "cpu":
        convolution = torch.nn.Conv2d(256, 256, 3, bias=False).to(dtype)
        image = torch.randn(1, 256, 66, 66).to(dtype).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            seconds = median_seconds(lambda: convolution(image))
        rates.append(2 * 64**2 * 9 * 256**2 / seconds)
    return max(rates)


def machine(device: str) -> dict[str, Any]:
    """What a figure depends on: hardware, versions, commit."""
    commit = ""
    if shutil.which("git"):
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        ).stdout.strip()
    name = torch.cuda.get_device_name() if device == "cuda" else _processor()
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": name,
        "capability": torch.ops.openseg.cpu_capability() if _ext.reason is None else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit or "unknown",
    }


def _processor() -> str:
    cpu_info = Path("/proc/cpuinfo")
    lines = cpu_info.read_text().splitlines() if cpu_info.exists() else []
    return next((line.split(": ")[1] for line in lines if "model name" in line), "unknown")


def append(record: dict[str, Any], name: str) -> None:
    """Adds one line to benchmarks/results/<name>.jsonl."""
    RESULTS.mkdir(exist_ok=True)
    with open(RESULTS / f"{name}.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
