# SPDX-License-Identifier: MIT
"""Rows of published tables: `python -m openseg.reproduce --row lip/ce2p_ocrnet_r101 data.root=DIR`.

Without an option it lists the rows; `--table NAME` prints a table, published beside measured.
A row that was interrupted goes on where it was; what it reaches is appended to the records.
"""

import argparse
import datetime
import difflib
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

import openseg
from openseg.cli import run
from openseg.config import load_config
from openseg.engine.environment import collect
from openseg.engine.files import make_folder
from openseg.errors import ConfigError, TrainingError

_METRICS = {"mIoU": "mean_iou", "accuracy": "pixel_accuracy"}
_PATHS = ("data.root=", "model.weights=", "run.folder=")


def main() -> None:
    options = _parse()
    tables = read_tables()
    if options.row is not None:
        rows = {row["config"]: (table, row) for table in tables.values() for row in table["rows"]}
        table, row = _get("row", rows, options.row)
        reproduce(table, row, options)
    elif options.table is not None:
        print(table_text(_get("table", tables, options.table), read_records(options.records)))
    else:
        for name, table in tables.items():
            print(f"\n{name}: {table['title']}")
            for row in table["rows"]:
                print(f"  {row['config']:<52} {row['method']}, {row['backbone']}")


def read_tables() -> dict[str, Any]:
    """configs/tables.yaml, which says what is in it."""
    path = Path(openseg.__file__).parent / "configs" / "tables.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_records(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def reproduce(table: dict[str, Any], row: dict[str, Any], options: argparse.Namespace) -> None:
    """Train, unless the network is there, and record every evaluation of the table."""
    name, trained = row["config"], row.get("trained", row["config"])
    config = load_config(trained, options.overrides)
    folder = Path(str(config.run.folder))
    checkpoint, resumed = folder / "checkpoints" / "last.pt", folder.exists()
    begin = time.monotonic()
    _start("openseg.train", options, "--cfg", trained, "run.resume=auto")
    hours = None if resumed else round((time.monotonic() - begin) / 3600, 2)
    facts = collect()
    for split, words in table["evaluate"].items():
        output = folder / "evaluation" / f"{name.replace('/', '_')}_{split}"
        asked = ("--checkpoint", str(checkpoint), "--cfg", name, "--output", str(output), *words)
        _start("openseg.evaluate", options, *asked)
        metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        record = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "row": name,
            "evaluation": split,
            **{key: metrics[key] for key in ("mean_iou", "pixel_accuracy", "images")},
            **{key: getattr(config.train, key) for key in ("iterations", "batch_size", "seed")},
            "hours": hours,
            "overrides": [word for word in options.overrides if not word.startswith(_PATHS)],
            "device": ", ".join(facts["GPUs"]) or facts["processor"],
            **{key: facts[key] for key in ("openseg", "commit", "torch")},
        }
        make_folder(options.records.parent)
        with open(options.records, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def _start(module: str, options: argparse.Namespace, *words: str) -> None:
    command = [sys.executable, "-m"]
    if options.processes > 1:
        command += ["torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(options.processes), "-m"]
    command += [module, *words, *options.overrides]
    print(" ".join(command), flush=True)
    status = subprocess.run(command).returncode
    if status:
        raise TrainingError(f"{module} ended with status {status}; the same command goes on")


def table_text(table: dict[str, Any], records: Iterable[dict[str, Any]]) -> str:
    """A table in Markdown; of several records of a row the last one counts."""
    last = {(record["row"], record["evaluation"]): record for record in records}
    known = {column for row in table["rows"] for column in row.get("published", {})}
    columns = [(c, [c, "measured"] if c in known else [c]) for c in table["columns"]]
    head = ["method", "backbone", *(c for _, names in columns for c in names)]
    lines = [[*head, "batch", "iterations"], ["---"] * (len(head) + 2)]
    for row in table["rows"]:
        config = load_config(row["config"], ["data.root=."]).train
        cells = [row["method"], row["backbone"]]
        for column, names in columns:
            split, metric = column.split()
            cells += [str(row.get("published", {}).get(column, ""))][: len(names) - 1]
            cells.append(_measured(last.get((row["config"], split)), _METRICS[metric]))
        lines.append([*cells, str(config.batch_size), str(config.iterations)])
    return "\n".join([table["title"], "", *("| " + " | ".join(line) + " |" for line in lines)])


def _measured(record: dict[str, Any] | None, metric: str) -> str:
    """In percent, with what was changed of the row."""
    if record is None:
        return ""
    changed = f" ({', '.join(record['overrides'])})" if record["overrides"] else ""
    return f"{100 * record[metric]:.2f}{changed}"


def _get(kind: str, known: dict[str, Any], name: str) -> Any:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:8]
        raise ConfigError(f"there is no {kind} {name!r}; did you mean {' or '.join(near)}?")
    return known[name]


def _parse() -> argparse.Namespace:
    results = Path(openseg.__file__).parents[1] / "benchmarks" / "results"
    records = (results if results.is_dir() else Path("runs")) / "tables.jsonl"
    parser = argparse.ArgumentParser(prog="python -m openseg.reproduce", description=__doc__)
    parser.add_argument("--row", metavar="NAME", help="train and evaluate it; see the list")
    parser.add_argument("--table", metavar="NAME", help="print it")
    parser.add_argument("--records", type=Path, default=records, help="default: %(default)s")
    parser.add_argument("--processes", type=int, default=1, help="one a GPU; default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for both commands")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
