# SPDX-License-Identifier: MIT
"""Write the tables of README.md from benchmarks/results/: `python benchmarks/tables.py`.

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; of a workload that was measured more
than once on a machine the last record counts.
"""

import json
import re
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
README = Path(__file__).resolve().parents[1] / "README.md"


def records(name: str) -> list[dict[str, Any]]:
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "Not recorded yet."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def operators() -> str:
    """Times and memory of each operator beside its fastest peer."""
    last = {(r["device"], r["operator"], r["case"], r["threads"]): r for r in records("ops")}
    rows = []
    for (device, operator, case, threads), record in last.items():
        peer = min(record["peers"], key=record["peers"].__getitem__)
        seconds, ours = record["peers"][peer], record["ours"]
        rows.append(
            [
                f"`{operator}`",
                case,
                f"{device}, {record['capability']}, {threads} thr.",
                f"{1e3 * ours:.1f} ms",
                f"{1e3 * seconds:.1f} ms ({peer})",
                f"{seconds / ours:.1f}×",
                f"{record['peak'] / 1e6:.0f} / {record['peer_peaks'][peer] / 1e6:.0f} MB",
            ]
        )
    head = ["operator", "case", "machine", "ours", "best peer", "faster", "peak memory"]
    return table(head, rows)


def training() -> str:
    """Mean IoU that shipped configurations reach, over their seeds."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records("training"):
        runs.setdefault(record["config"], {})[record["seed"]] = record
    rows = []
    for config, seeds in runs.items():
        final = [100 * record["curve"][-1][1] for record in seeds.values()]
        # those without a time of the processors had two cores to themselves
        minutes = statistics.mean(r.get("cpu_minutes", 2 * r["minutes"]) for r in seeds.values())
        each = ", ".join(f"{value:.1f}" for value in final)
        rows.append([f"`{config}`", f"{statistics.mean(final):.1f}", each, f"{minutes:.0f}"])
    return table(["configuration", "mean IoU, %", "seeds", "minutes of one core, each"], rows)


def main() -> None:
    text = README.read_text(encoding="utf-8")
    for name, make in {"operators": operators, "training": training}.items():
        place = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        text, count = place.subn(f"\\g<1>{make()}\n\\g<2>", text)
        if count != 1:
            raise SystemExit(f"README.md must have the mark <!-- {name} --> once, it has {count}")
    README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
