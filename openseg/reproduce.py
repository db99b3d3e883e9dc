# SPDX-License-Identifier: MIT
"""Rows of published tables: `python -m openseg.reproduce --row lip/ce2p_ocrnet_r101 data.root=DIR`.

Without an option it lists the rows; `--table NAME` prints a table, published beside measured.
A row that was interrupted goes on where it was; what it reaches is appended to the records. Each
seed is a run of its own: `train.seed=1 run.folder=DIR`.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openseg
from openseg.build.tables import find, find_row, read_records, read_tables, table_text
from openseg.cli import at_least_one, run
from openseg.config import Config, load_config
from openseg.config.loading import differences
from openseg.engine.checkpoints import read_checkpoint
from openseg.engine.environment import collect
from openseg.engine.files import make_folder
from openseg.errors import ConfigError, OutputError, TrainingError

# of an option's name: what a network's figure does not depend on, and its training neither
_NO_MATTER = ("data.root=", "data.workers=", "model.weights=", "train.seed=", "run.", "device=")
_NOT_TRAINED = ("data.root:", "data.workers:", "data.val_", "model.weights:", "val.", "device:")


def main() -> None:
    options = _parse()
    tables = read_tables()
    if options.row is not None:
        reproduce(*find_row(tables, options.row), options)
    elif options.table is not None:
        print(table_text(find("table", tables, options.table), read_records(options.records)))
    else:
        for name, table in tables.items():
            print(f"\n{name}: {table['title']}")
            for row in table["rows"]:
                print(f"  {row['config']:<52} {row['method']}, {row['backbone']}")


def reproduce(table: dict[str, Any], row: dict[str, Any], options: argparse.Namespace) -> None:
    """Train, unless the network is there, and record every evaluation of the table."""
    name, trained = row["config"], row.get("trained", row["config"])
    overrides = [*table.get("overrides", []), *options.overrides]
    config = load_config(trained, overrides)
    # What would fail after hours of training fails now.
    for words in table["evaluate"].values():
        load_config(name, [*words, *overrides])
    _append(options.records, "")
    folder = Path(str(config.run.folder))
    checkpoint, resumed = folder / "checkpoints" / "last.pt", folder.exists()
    if checkpoint.exists():
        _refuse_another_run(config, checkpoint)
    began = _seconds()
    _start(checkpoint, options.processes, "openseg.train",
           "--cfg", trained, "run.resume=auto", *overrides)  # fmt: skip
    hours = [None if resumed else round((now - then) / 3600, 3)
             for now, then in zip(_seconds(), began, strict=True)]  # fmt: skip
    facts = collect()
    for split, words in table["evaluate"].items():
        output = folder / "evaluation" / f"{name.replace('/', '_')}_{split}"
        asked = ("--checkpoint", str(checkpoint), "--cfg", name, "--output", str(output))
        _start(checkpoint, options.processes, "openseg.evaluate", *asked, *words, *overrides)
        metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        record = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "row": name,
            "evaluation": split,
            **{key: metrics[key] for key in ("mean_iou", "pixel_accuracy", "images")},
            **{key: getattr(config.train, key) for key in ("iterations", "batch_size", "seed")},
            **dict(zip(("hours", "processor_hours"), hours, strict=True)),
            "overrides": [word for word in options.overrides if not word.startswith(_NO_MATTER)],
            "device": ", ".join(facts["GPUs"]) or facts["processor"],
            **{key: facts[key] for key in ("openseg", "commit", "torch")},
        }
        _append(options.records, json.dumps(record) + "\n")


def _append(records: Path, text: str) -> None:
    make_folder(records.parent)
    try:
        with open(records, "a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise OutputError(f"{records}: cannot be written: {error.strerror}") from error


def _refuse_another_run(config: Config, checkpoint: Path) -> None:
    """What lies in the folder must be this row: its figure would stand in the table."""
    saved = read_checkpoint(checkpoint)["config"] or {}
    other = [d for d in differences(config, saved) if not d.startswith(_NOT_TRAINED)]
    if other:
        raise ConfigError(
            f"{checkpoint}: was trained with other options ({'; '.join(other)}): name another "
            "folder as run.folder=DIR"
        )


def _seconds() -> tuple[float, float]:
    """Of the clock, and of all cores in commands that have ended, whatever else they ran beside."""
    return time.monotonic(), sum(os.times()[2:4])


def _start(checkpoint: Path, processes: int, module: str, *words: str) -> None:
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(processes), "-m"]
    command += [module, *words]
    print(" ".join(command), flush=True)
    status = subprocess.run(command).returncode
    if status:
        kept = f"; the row can go on from {checkpoint}" if checkpoint.exists() else ""
        raise TrainingError(f"{module} ended with status {status}{kept}")


def _parse() -> argparse.Namespace:
    results = Path(openseg.__file__).parents[1] / "benchmarks" / "results"
    records = (results if results.is_dir() else Path("runs")) / "tables.jsonl"
    parser = argparse.ArgumentParser(prog="python -m openseg.reproduce", description=__doc__)
    parser.add_argument("--row", metavar="NAME", help="train and evaluate it; see the list")
    parser.add_argument("--table", metavar="NAME", help="print it")
    parser.add_argument("--records", type=Path, default=records, help="default: %(default)s")
    parser.add_argument(
        "--processes", type=at_least_one, default=1, help="one a GPU; default: %(default)s"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the row")
    options = parser.parse_intermixed_args()  # key=value words may stand anywhere
    if options.overrides and options.row is None:
        parser.error(f"{options.overrides[0]}: belongs to --row NAME, which is not given")
    return options


if __name__ == "__main__":
    run(main)
