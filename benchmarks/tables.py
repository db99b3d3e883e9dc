# SPDX-License-Identifier: MIT
"""Write the tables of README.md and docs/benchmarks.md from benchmarks/results/.

    python benchmarks/tables.py

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`; of a workload that was measured more
than once on a machine the last record counts.
"""

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results")
Record = dict[str, Any]

# What README.md shows of an operator: the cases that networks have in training and evaluation.
HEADLINES = {
    ("upsample_argmax", "network"): "19 classes, 129×257 → 1024×2048",
    ("confusion_matrix", "uint8"): "19 classes, 1024×2048",
    ("upsample_cross_entropy", "150 classes, 513x513"): "2×150×65×65 → 513×513, both",
    ("upsample_cross_entropy", "19 classes, OHEM"): "OHEM, 2×19×65×129 → 512×1024, both",
    ("spatial_gather", "K=19 float32 channels_last both"): "512×128×128, 19 regions, both",
    ("object_attention", "K=19 float32 channels_last both"): "256×128×128, 19 regions, both",
    ("object_attention", "K=150 float32 channels_last both"): "256×128×128, 150 regions, both",
    ("self_attention", "K=9409 float32 channels_last forward"): "256×97×97",
    ("self_attention", "K=9409 bfloat16 channels_last forward"): "256×97×97, bfloat16",
    ("self_attention", "K=9409 float32 channels_last both"): "256×97×97, both",
    ("interlaced_attention", "K=233 float32 channels_last both"): "two stages, 104×104, both",
    ("inplace_abn", "float32 channels_last"): "2×512×97×97, both",
}


def records(name: str) -> list[Record]:
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def last(measured: list[Record], *keys: str) -> dict[tuple[Any, ...], Record]:
    """The last record of each workload and machine, in the order of the first ones."""
    keys = ("device", "capability", *keys)
    done = (record for record in measured if "failed" not in record)
    return {tuple(record[key] for key in keys): record for record in done}


def operator_records() -> dict[tuple[Any, ...], Record]:
    workload = "operator", "case", "threads"
    return last(records("ops"), *workload) | last(records("attention"), *workload)


def table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return "Not recorded yet."
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(record: Record) -> str:
    return f"{record['device']}, {record['capability']}, torch {record['torch']}"


def best_peer(record: Record) -> str:
    return min(record["peers"], key=record["peers"].__getitem__)


def faster(record: Record) -> str:
    return f"{record['peers'][best_peer(record)] / record['ours']:.1f}×"


def memory(record: Record) -> str:
    return f"{record['peak'] / 1e6:.0f} / {record['peer_peaks'][best_peer(record)] / 1e6:.0f} MB"


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def headlines() -> str:
    """One line a case: time and ratio with one thread on each machine, more of the last one."""
    measured = [r for r in operator_records().values() if r["threads"] == 1]
    names = list(dict.fromkeys(f"{r['device']}, {r['capability']}" for r in reversed(measured)))
    rows = []
    for (operator, case), title in HEADLINES.items():
        found = {
            f"{r['device']}, {r['capability']}": r
            for r in measured
            if (r["operator"], r["case"]) == (operator, case)
        }
        if not found:
            continue
        of_machines = [
            f"{milliseconds(found[name]['ours'])} ms, {faster(found[name])}"
            if name in found
            else ""
            for name in names
        ]
        detailed = found[next(name for name in names if name in found)]
        rows.append([f"`{operator}`", title, *of_machines, best_peer(detailed), memory(detailed)])
    return table(["operator", "case", *names, "best peer", "memory"], rows)


def operators() -> str:
    """Every recorded case, the machine that was measured last first; threads side by side."""
    machines: dict[str, dict[tuple[str, str], list[Record]]] = {}
    for record in operator_records().values():
        cases = machines.setdefault(machine(record), {})
        cases.setdefault((record["operator"], record["case"]), []).append(record)
    parts = []
    for name, cases in reversed(machines.items()):
        rows = [
            [
                f"`{operator}`",
                case,
                " / ".join(str(record["threads"]) for record in found),
                " / ".join(milliseconds(record["ours"]) for record in found) + " ms",
                " / ".join(f"{100 * r['floor'] / r['ours']:.0f}" for r in found) + " %",
                " / ".join(faster(record) for record in found),
                ", ".join(dict.fromkeys(best_peer(record) for record in found)),
                memory(found[0]),
            ]
            for (operator, case), found in cases.items()
        ]
        head = ["operator", "case", "threads", "ours", "floor", "faster than the best peer"]
        parts.append(f"On {name}:\n\n" + table([*head, "which is", "memory"], rows))
    return "\n\n".join(parts)


def gpu() -> str:
    """What GPUs did: outcomes of the tests, then every case with its peers of all runs.

    Shares and ratios are those of CUDA graphs where there is one, by the times of one run.
    """
    machines: dict[str, list[Record]] = {}
    for record in records("gpu"):
        machines.setdefault(f"{record['device']}, torch {record['torch']}", []).append(record)
    parts = []
    for name, found in reversed(machines.items()):
        outcomes: dict[str, str] = {}
        runs: dict[tuple[str, str], list[Record]] = {}
        for record in found:
            for step in {"tests", "memcheck", "racecheck"} & record.keys():
                outcomes[f"{step} {record.get('of', '')}".strip()] = record[step].strip("= ")
            if "ours" in record:
                runs.setdefault((record["operator"], record["case"]), []).append(record)
        said = "".join(f"- {step}: {outcome}\n" for step, outcome in outcomes.items())
        rows = [_on_gpu(*case, of_case) for case, of_case in runs.items()]
        head = ["operator", "case", "cold", "in a graph", "warm", "floor"]
        head += ["faster than the best peer", "which is", "memory"]
        parts.append(f"On {name}:\n\n{said}\n{table(head, rows)}")
    return "\n\n".join(parts) or "Nothing has run on a GPU yet."


def _on_gpu(operator: str, case: str, runs: list[Record]) -> list[str]:
    """The last run of a case, with the best peer of all runs of the same commit."""
    record = runs[-1]

    def seconds(run: Record, name: str) -> float:
        cold = run["ours"] if name == "ours" else run["peers"][name]
        return run["modes"][name].get("graph", cold)

    ratios = {
        name: (seconds(run, name) / seconds(run, "ours"), run["peer_peaks"][name])
        for run in runs
        if run["commit"] == record["commit"]
        for name in run["peers"]
    }
    best = min(ratios, key=ratios.__getitem__, default="")
    faster, peak = (f"{ratios[best][0]:.1f}×", ratios[best][1]) if best else ("", 0)
    modes = record["modes"]["ours"]
    return [
        f"`{operator}`",
        case,
        *(
            f"{1e6 * t:.0f} µs" if t else ""
            for t in (record["ours"], modes.get("graph"), modes.get("warm"))
        ),
        f"{100 * record['floor'] / seconds(record, 'ours'):.0f} %",
        faster,
        best,
        f"{record['peak'] / 1e6:.0f} / {peak / 1e6:.0f} MB",
    ]


def steps() -> str:
    """Training steps, every operator on its kernel and on its reference."""
    rows = []
    measured = records("steps") + [record for record in records("gpu") if "network" in record]
    for record in last(measured, "network", "threads", "crop").values():
        kernels, plain = record["auto"], record["reference"]
        rows.append(
            [
                f"`{record['network']}`",
                str(record["threads"]),
                f"{kernels['seconds']:.2f} / {plain['seconds']:.2f} s",
                f"{plain['seconds'] / kernels['seconds']:.2f}×",
                f"{kernels['peak'] / 2**20:,.0f} / {plain['peak'] / 2**20:,.0f} MiB",
                machine(record),
            ]
        )
    head = ["network", "threads", "step: kernels / references", "faster", "peak memory", "machine"]
    return table(head, rows)


def heads() -> str:
    """Context heads at 1×2048×128×128."""
    rows = [
        [
            record["head"],
            f"{record['parameters'] / 1e6:.1f} M",
            f"{record['gigaflops']:.0f}",
            f"{record['milliseconds'] / 1e3:.1f} s",
            f"{record['peak_mebibytes']:.0f} MiB",
            str(record["threads"]),
            machine(record),
        ]
        for record in last(records("complexity"), "head", "threads").values()
    ]
    return table(["head", "parameters", "GFLOPs", "time", "memory", "threads", "machine"], rows)


def data() -> str:
    """Reading and augmenting, on one core."""
    rows = [
        [
            f"`{record['set']}`",
            "{}×{}".format(*reversed(record["size"])),
            f"{record['read_ms']:.1f} ms",
            f"{record['augment_ms']:.1f} ms",
            f"{record['images_per_second']:.1f}",
            machine(record),
        ]
        for record in last(records("data"), "set").values()
    ]
    return table(["set", "image", "read", "augment", "images a second", "machine"], rows)


def training() -> str:
    """Mean IoU that shipped configurations reach, over their seeds."""
    runs: dict[str, dict[int, Record]] = {}
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


PAGES: dict[str, tuple[Callable[[], str], ...]] = {
    "README.md": (headlines, training),
    "docs/benchmarks.md": (operators, gpu, steps, heads, data),
}


def render(page: str) -> str:
    """The page with its tables as the records have them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for make in PAGES[page]:
        name = make.__name__
        place = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        text, count = place.subn(f"\\g<1>{make()}\n\\g<2>", text)
        if count != 1:
            raise SystemExit(f"{page} must have the mark <!-- {name} --> once, it has {count}")
    return text


def main() -> None:
    for page in PAGES:
        (ROOT / page).write_text(render(page), encoding="utf-8")


if __name__ == "__main__":
    main()
