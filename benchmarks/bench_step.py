# SPDX-License-Identifier: MIT
"""Whole training steps, every operator on its kernel or on its reference.

    python benchmarks/bench_step.py --threads 1 2

ADE20K's classes and half the side of its crop: OCRNet and BaseOCNet-v2 on ResNet-50, K = 150, two
images of 257×257. Each measurement is a process of its own, so that the peak of its resident set is
that of the step. The first losses of both have to agree, or no time is printed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from typing import Any

import _timing
import torch

NETWORKS = ("ocrnet", "base_ocnet_v2")
CLASSES, BATCH, CROP = 150, 2, 257


def step(network: str, threads: int, crop: int) -> dict[str, float]:
    """Loss of the first step, seconds of a later one, and the bytes of this process at its peak."""
    from openseg import create_model
    from openseg.losses import SegmentationLoss

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = create_model(network, backbone="resnet50c", num_classes=CLASSES)
    model = model.to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, crop, crop).contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, CLASSES, (BATCH, crop, crop), dtype=torch.uint8)
    criterion = SegmentationLoss()

    def run() -> torch.Tensor:
        model.zero_grad()
        loss = criterion(model(images), target)["loss"]
        loss.backward()
        return loss.detach()

    loss = float(run())
    return {"loss": loss, "seconds": _timing.median_seconds(run, 10), "peak": _peak()}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(network: str, threads: int, crop: int) -> dict[str, Any]:
    """The figures of both backends; raises when their losses differ."""
    figures = {}
    for backend in ("auto", "reference"):
        command = [sys.executable, __file__, "--one", network, str(threads), str(crop)]
        environment = dict(os.environ, OPENSEG_BACKEND=backend)
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        figures[backend] = json.loads(done.stdout)
    losses = [figures[backend]["loss"] for backend in figures]
    if abs(losses[0] - losses[1]) > 1e-4 * losses[1]:
        raise SystemExit(f"{network}: the losses {losses} differ, no times for a wrong result")
    return {"network": network, "threads": threads, "crop": crop, **figures}


def describe(figures: dict[str, Any]) -> str:
    ours, plain = figures["auto"], figures["reference"]
    columns = [
        f"{name} {backend['seconds']:.2f} s, {backend['peak'] / 2**20:,.0f} MiB"
        for name, backend in {"kernels": ours, "references": plain}.items()
    ]
    ratio, less = plain["seconds"] / ours["seconds"], (plain["peak"] - ours["peak"]) / 2**20
    head = f"{figures['network']:14} {figures['threads']} threads"
    return f"{head}: {'; '.join(columns)}; {ratio:.2f}× as fast, {less:,.0f} MiB less"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--crop", type=int, default=CROP, help="side of an image")
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        network, threads, crop = options.one
        print(json.dumps(step(network, int(threads), int(crop))))
        return
    facts = _timing.machine("cpu")
    for threads in options.threads:
        for network in NETWORKS:
            figures = measure(network, threads, options.crop)
            print(describe(figures), flush=True)
            if options.record:
                _timing.append({**facts, **figures}, "steps")


if __name__ == "__main__":
    main()
