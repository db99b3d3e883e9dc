# SPDX-License-Identifier: MIT
"""Train configurations from several seeds and record what they reach.

    python benchmarks/train_networks.py scenes/ocrnet_r18 scenes/fcn_r18 --seeds 0 1 2

Each run is `python -m openseg.train` with that configuration; `--record` appends the mean IoU of
every validation to benchmarks/results/training.jsonl. What follows `--` goes to every run, such as
`-- data.root=DIR`; no value of a path is recorded.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _timing


def train(name: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """The record of one run: (iteration, mean IoU) of each validation, and the minutes it took."""
    with tempfile.TemporaryDirectory() as folder:
        words = [f"train.seed={seed}", f"run.folder={folder}/run", "run.samples=0", *overrides]
        begin, used = time.monotonic(), _processor_seconds()
        subprocess.run([sys.executable, "-m", "openseg.train", "--cfg", name, *words], check=True)
        minutes = (time.monotonic() - begin) / 60
        cpu_minutes = (_processor_seconds() - used) / 60
        lines = (Path(folder) / "run/metrics.jsonl").read_text().splitlines()
    validations = [r for r in map(json.loads, lines) if r["kind"] == "validation"]
    return {
        "config": name,
        "seed": seed,
        "overrides": [word for word in overrides if not word.startswith("data.root=")],
        "minutes": round(minutes, 1),
        "cpu_minutes": round(cpu_minutes, 1),
        "curve": [(r["iteration"], round(r["mean_iou"], 4)) for r in validations],
        "pixel_accuracy": round(validations[-1]["pixel_accuracy"], 4),
    }


def _processor_seconds() -> float:
    """What the runs so far have used, of all cores: what they took does not depend on a load."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", metavar="CONFIG")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/")
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    options, overrides = parser.parse_args(words[:split]), words[split + 1 :]
    facts = _timing.machine("cpu")
    reached: dict[str, list[float]] = {name: [] for name in options.configs}
    for seed in options.seeds:
        for name in options.configs:
            record = train(name, seed, overrides)
            reached[name].append(record["curve"][-1][1])
            if options.record:
                _timing.append({**facts, **record}, "training")
    for name, values in reached.items():
        each = ", ".join(f"{100 * value:.1f}" for value in values)
        print(f"{name}: mean IoU {100 * statistics.mean(values):.1f} ({each})")


if __name__ == "__main__":
    main()
