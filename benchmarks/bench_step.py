# SPDX-License-Identifier: MIT
"""Whole training steps, every operator on its kernel or on its reference.

    python benchmarks/bench_step.py --threads 1 2

ADE20K's classes and half the side of its crop: OCRNet and BaseOCNet-v2 on ResNet-50, K = 150, two
images of 257×257; on a GPU eight of 513×513, under autocast to bfloat16. Each measurement is a
process of its own, so that the peak of its resident set is that of the step. The first losses of
both have to agree, or no time is printed.
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
CLASSES = 150
BATCH = {"cpu": 2, "cuda": 8}
CROP = {"cpu": 257, "cuda": 513}
SECONDS = {"cpu": 10, "cuda": 3}
AGREE = {"cpu": 1e-4, "cuda": 1e-2}  # of the loss; bfloat16 has eight bits


def step(network: str, threads: int, crop: int, device: str) -> dict[str, float]:
    """Loss of the first step, seconds of a later one, and the bytes at their peak."""
    from openseg import create_model
    from openseg.losses import SegmentationLoss

    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True  # as in training
    torch.manual_seed(0)
    model = create_model(network, backbone="resnet50c", num_classes=CLASSES)
    model = model.to(device, memory_format=torch.channels_last)
    images = torch.randn(BATCH[device], 3, crop, crop)
    images = images.to(device, memory_format=torch.channels_last)
    target = torch.randint(0, CLASSES, (BATCH[device], crop, crop), dtype=torch.uint8).to(device)
    criterion = SegmentationLoss()

    def run() -> torch.Tensor:
        model.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = criterion(model(images), target)["loss"]
        loss.backward()
        return loss.detach()

    loss = float(run())
    if device == "cuda":  # without the trials of convolutions
        torch.cuda.reset_peak_memory_stats()
    seconds = _timing.median_seconds(run, SECONDS[device])
    return {"loss": loss, "seconds": seconds, "peak": _peak(device)}


def _peak(device: str) -> int:
    """What tensors take on a GPU, all of the process elsewhere."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(network: str, threads: int, crop: int, device: str) -> dict[str, Any]:
    """The figures of both backends; raises when their losses differ."""
    figures = {}
    for backend in ("auto", "reference"):
        command = [sys.executable, __file__, "--one", network, str(threads), str(crop), device]
        environment = dict(os.environ, OPENSEG_BACKEND=backend)
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
        figures[backend] = json.loads(done.stdout)
    losses = [figures[backend]["loss"] for backend in figures]
    if not abs(losses[0] - losses[1]) <= AGREE[device] * losses[1]:
        raise SystemExit(f"{network}: the losses {losses} differ, no times for a wrong result")
    return {"network": network, "threads": threads, "crop": crop, **figures}


def describe(figures: dict[str, Any]) -> str:
    ours, plain = figures["auto"], figures["reference"]
    columns = [
        f"{name} {backend['seconds']:.3g} s, {backend['peak'] / 2**20:,.0f} MiB"
        for name, backend in {"kernels": ours, "references": plain}.items()
    ]
    ratio, less = plain["seconds"] / ours["seconds"], (plain["peak"] - ours["peak"]) / 2**20
    head = f"{figures['network']:14} {figures['threads']} threads"
    return f"{head}: {'; '.join(columns)}; {ratio:.2f}× as fast, {less:,.0f} MiB less"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--crop", type=int, help="side of an image")
    parser.add_argument("--only", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument(
        "--record", nargs="?", const="steps", help="append to benchmarks/results/RECORD.jsonl"
    )
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        network, threads, crop, device = options.one
        print(json.dumps(step(network, int(threads), int(crop), device)))
        return
    facts = _timing.machine(options.device)
    crop = options.crop or CROP[options.device]
    for threads in options.threads:
        for network in options.only:
            figures = measure(network, threads, crop, options.device)
            print(describe(figures), flush=True)
            if options.record:
                _timing.append({**facts, **figures}, options.record)


if __name__ == "__main__":
    main()
