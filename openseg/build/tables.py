# SPDX-License-Identifier: MIT
"""The published tables, and what was recorded of their rows, as Markdown.

A cell counts the last record of each seed, as long as all were trained alike.
"""

import difflib
import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

import openseg
from openseg.config import load_config
from openseg.errors import ConfigError, DataError

_METRICS = {"mIoU": "mean_iou", "accuracy": "pixel_accuracy"}
_ALIKE = ("iterations", "batch_size", "overrides")
_KEYS = {"row", "evaluation", "seed", *_METRICS.values(), *_ALIKE}


def read_tables() -> dict[str, Any]:
    """configs/tables.yaml, which says what is in it."""
    path = Path(openseg.__file__).parent / "configs" / "tables.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def find(kind: str, known: dict[str, Any], name: str) -> Any:
    """ConfigError, with the nearest ones, where there is no `kind` of this name."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)[:8]
        raise ConfigError(f"there is no {kind} {name!r}; did you mean {' or '.join(near)}?")
    return known[name]


def find_row(tables: dict[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first table with this row, but with the evaluations of all that have it, and the row."""
    rows: dict[str, list[Any]] = {}
    for table in tables.values():
        for row in table["rows"]:
            rows.setdefault(row["config"], []).append((table, row))
    found = find("row", rows, name)
    table, row = found[0]
    evaluations: dict[str, list[str]] = {}
    for one_of in (part for pair in found for part in pair):
        evaluations |= one_of.get("evaluate", {})
    return {**table, "evaluate": evaluations}, row


def read_records(path: Path) -> list[dict[str, Any]]:
    """What rows reached, oldest first; nothing where there is no such file yet."""
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no text: {error}") from error
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _record(line: str, place: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: is no record of a row: {error}; mend or remove it") from error
    missing = _KEYS - record.keys() if isinstance(record, dict) else _KEYS
    if missing:
        raise DataError(f"{place}: is no record of a row: it lacks {', '.join(sorted(missing))}")
    return record


def table_text(table: dict[str, Any], records: Iterable[dict[str, Any]]) -> str:
    """A table in Markdown, published beside measured; cells of what was not measured are empty."""
    measured: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        measured.setdefault((record["row"], record["evaluation"]), []).append(record)
    known = {column for row in table["rows"] for column in row.get("published", {})}
    columns = [(c, [c, "measured"] if c in known else [c]) for c in table["columns"]]
    head = ["method", "backbone", *(c for _, names in columns for c in names)]
    lines = [[*head, "batch", "iterations"], ["---"] * (len(head) + 2)]
    for row in table["rows"]:
        train = load_config(row["config"], ["data.root=.", *table.get("overrides", [])]).train
        cells = [row["method"], row["backbone"]]
        for column, names in columns:
            split, metric = column.split()
            cells += [str(row.get("published", {}).get(column, ""))][: len(names) - 1]
            cells.append(_figure(measured.get((row["config"], split), []), _METRICS[metric]))
        lines.append([*cells, str(train.batch_size), str(train.iterations)])
    return "\n".join([table["title"], "", *("| " + " | ".join(line) + " |" for line in lines)])


def _figure(records: list[dict[str, Any]], metric: str) -> str:
    """In percent: the mean over seeds, each of them, and what was changed of the row."""
    if not records:
        return ""
    last = records[-1]
    alike = [r for r in records if all(r[key] == last[key] for key in _ALIKE)]
    seeds = {record["seed"]: 100 * record[metric] for record in alike}
    notes = [f"{value:.2f}" for value in seeds.values()] if len(seeds) > 1 else []
    notes = [", ".join(notes + last["overrides"])] if notes or last["overrides"] else []
    return " ".join([f"{statistics.mean(seeds.values()):.2f}", *(f"({note})" for note in notes)])
