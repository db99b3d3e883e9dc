# SPDX-License-Identifier: MIT
"""Metrics for people and programs: a table, JSON, and the confusion matrix as text and picture.

Rows of a shown confusion matrix are normalised: an entry is the share of the target class's pixels
that got the predicted class, so the diagonal is the class accuracy and not the IoU.
"""

import importlib.util
import json
import math
import sys
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from openseg.engine.files import make_folder, replacing
from openseg.metrics import SegmentationMetrics

_MOST_CLASSES_WITH_FIGURES = 32


def print_report(metrics: SegmentationMetrics, stream: TextIO | None = None) -> None:
    """The per-class table and the summary: a drawn table on a terminal, plain text elsewhere."""
    stream = stream or sys.stdout
    if not stream.isatty():
        print(metrics, file=stream)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("class")
    for header in ("IoU %", "accuracy %", "pixels %"):
        table.add_column(header, justify="right")
    for row in metrics.rows():
        table.add_row(*row)
    console = Console(file=stream, highlight=False)
    console.print(table)
    console.print(metrics.summary(), style="bold")


def write_report(
    metrics: SegmentationMetrics, folder: str | Path, facts: dict[str, Any] | None = None
) -> list[Path]:
    """Write metrics.json, confusion_matrix.txt and, with matplotlib, confusion_matrix.png.

    facts: plain types that say what was evaluated and how; they stand first in the JSON.
    Returns the files written. Raises OutputError where the folder cannot be written.
    """
    folder = make_folder(folder)
    contents = {**(facts or {}), **metrics.to_dict(), "confusion": metrics.confusion.tolist()}
    texts = {
        "metrics.json": json.dumps(contents, indent=1, ensure_ascii=False) + "\n",
        "confusion_matrix.txt": confusion_text(metrics) + "\n",
    }
    written = []
    for name, text in texts.items():
        with replacing(folder / name) as path:
            path.write_text(text, encoding="utf-8")
        written.append(folder / name)
    if importlib.util.find_spec("matplotlib") is not None:
        draw_confusion(metrics, folder / "confusion_matrix.png")
        written.append(folder / "confusion_matrix.png")
    return written


def confusion_text(metrics: SegmentationMetrics) -> str:
    """The confusion matrix in percent of each row, aligned; a dash where a class is absent."""
    names = metrics.class_names
    width = max(len(name) for name in names)
    header = "".join(f"{number:>7}" for number in range(len(names)))
    lines = [
        "Row: class of the pixels. Column: number of the predicted class. In % of the row.",
        "",
        " " * (width + 4) + header,
    ]
    for number, (name, row) in enumerate(zip(names, _shares(metrics).tolist(), strict=True)):
        cells = ("-" if math.isnan(share) else f"{100 * share:.1f}" for share in row)
        lines.append(f"{number:>3} {name:<{width}}" + "".join(f"{cell:>7}" for cell in cells))
    return "\n".join(lines)


def draw_confusion(metrics: SegmentationMetrics, path: str | Path) -> None:
    """Draw the row-normalised confusion matrix into a picture file.

    Raises ImportError without matplotlib and OutputError where the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "openseg[plot]"') from error

    names, shares = metrics.class_names, _shares(metrics)
    few = len(names) <= _MOST_CLASSES_WITH_FIGURES
    side = max(3.6, 0.42 * len(names)) if few else 0.11 * len(names)
    figure = Figure(figsize=(side + 3.2, side + 2.4), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(100 * shares.numpy(), cmap="Blues", vmin=0, vmax=100)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(labelsize=9 if few else 5.5, length=0)
    axes.set(xlabel="predicted", ylabel="target", facecolor="0.92")
    axes.spines[:].set_visible(False)
    axes.set_title(f"Confusion matrix\n{metrics.summary()}", fontsize=10)
    if few:
        _write_figures(axes, shares)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02, fraction=0.4 / side, aspect=30)
    bar.set_label("% of the target's pixels")
    bar.outline.set_visible(False)
    with replacing(Path(path)) as temporary:
        FigureCanvasAgg(figure).print_figure(temporary, dpi=150)


def _write_figures(axes: Any, shares: Tensor) -> None:
    """Whole percents in the cells that have any, white on the dark ones."""
    for row, column in (shares >= 0.005).nonzero().tolist():
        share = shares[row, column].item()
        color = "white" if share > 0.55 else "0.15"
        text = f"{100 * share:.0f}"
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)


def _shares(metrics: SegmentationMetrics) -> Tensor:
    """Float64 [K, K], each row divided by its sum; nan in the row of an absent class."""
    counts = metrics.confusion.to(torch.float64)
    return counts / counts.sum(1, keepdim=True)
