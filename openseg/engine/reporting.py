# SPDX-License-Identifier: MIT
"""What a run tells: progress on the terminal, log.txt, metrics.jsonl, curves and event files.

A terminal gets a bar that stays in place; a file or a pipe gets plain lines. metrics.jsonl has one
JSON object a line, of kind "train" or "validation", each with its iteration.
"""

import importlib.util
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from openseg.engine.files import replacing
from openseg.engine.training import Metrics
from openseg.errors import ConfigError, OutputError

log = logging.getLogger("openseg")


class SilentEvents:
    """For the processes that tell nothing."""

    def on_step(self, iteration: int) -> None: ...

    def on_losses(self, record: dict[str, Any]) -> None: ...

    def on_validation(self, iteration: int, metrics: Metrics, is_best: bool) -> None: ...

    def on_validating(self, done: int, count: int) -> None: ...


class Reporter:
    """Tells the terminal and the folder of the run; use it as a context manager.

    folder: where log.txt, metrics.jsonl and curves.png go; None writes nothing. Records after
        `start`, which an earlier run wrote before it was interrupted, are removed.
    """

    def __init__(
        self, iterations: int, start: int = 0, folder: Path | None = None, tensorboard: bool = False
    ) -> None:
        self.iterations = iterations
        self.start = start
        self.folder = folder
        self.began = time.monotonic()
        self.display = _Bar(iterations, start) if sys.stdout.isatty() else None
        self.handlers: list[logging.Handler] = []
        self.records = None if folder is None else Records(folder / "metrics.jsonl", start)
        self.draws = importlib.util.find_spec("matplotlib") is not None
        self.board = _event_writer(folder) if folder is not None and tensorboard else None

    def __enter__(self) -> "Reporter":
        console = logging.StreamHandler(sys.stdout) if self.display is None else self.display.logs()
        self._add_handler(console, "%(message)s")
        if self.folder is not None:
            file = logging.FileHandler(self.folder / "log.txt", encoding="utf-8")
            self._add_handler(file, "%(asctime)s %(message)s")
        log.setLevel(logging.INFO)
        if self.display is not None:
            self.display.open()
        if self.folder is not None and not self.draws:
            log.info('no curves.png, which needs matplotlib: pip install "openseg[plot]"')
        return self

    def __exit__(self, *error: object) -> None:
        if self.display is not None:
            self.display.close()
        for handler in self.handlers:
            log.removeHandler(handler)
            handler.close()
        if self.board is not None:
            self.board.close()

    def _add_handler(self, handler: logging.Handler, format: str) -> None:
        handler.setFormatter(logging.Formatter(format))
        handler.setLevel(logging.INFO)
        log.addHandler(handler)
        self.handlers.append(handler)

    def on_step(self, iteration: int) -> None:
        if self.display is not None:
            self.display.move(iteration, f"{duration(self._seconds_left(iteration))} left")

    def on_losses(self, record: dict[str, Any]) -> None:
        line = losses_line(record)
        left = duration(self._seconds_left(record["iteration"]))
        if self.display is not None:
            self.display.tell(line)
        else:
            log.info("%d/%d  %s  %s left", record["iteration"], self.iterations, line, left)
        self._record({"kind": "train", **record})

    def on_validation(self, iteration: int, metrics: Metrics, is_best: bool) -> None:
        if self.display is not None:
            self.display.tell("")
        mark = "  (best so far)" if is_best else ""
        log.info("validation at %d: mean IoU %.2f %%%s", iteration, 100 * metrics.mean_iou, mark)
        self._record({"kind": "validation", "iteration": iteration, **metrics.to_dict()})
        if self.folder is not None and self.draws:
            draw_curves(self.folder / "metrics.jsonl", self.folder / "curves.png")

    def on_validating(self, done: int, count: int) -> None:
        """Told by a validation after each image."""
        if self.display is not None:
            self.display.tell(f"validating {done}/{count}")

    def _record(self, record: dict[str, Any]) -> None:
        if self.records is not None:
            self.records.append(record)
        if self.board is not None:
            for name, value in record.items():
                if isinstance(value, (int, float)) and name != "iteration":
                    self.board.add_scalar(f"{record['kind']}/{name}", value, record["iteration"])

    def _seconds_left(self, iteration: int) -> float:
        """By the average of this run so far, validations included."""
        spent = time.monotonic() - self.began
        return spent / max(iteration - self.start, 1) * (self.iterations - iteration)


class _Bar:
    """The bar of rich at the foot of a terminal."""

    def __init__(self, iterations: int, start: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        facts = (TextColumn("{task.fields[left]}"), TextColumn("{task.fields[facts]}"))
        self.bar = Progress(BarColumn(20), MofNCompleteColumn(), *facts)
        self.task = self.bar.add_task("", total=iterations, completed=start, left="", facts="")
        self.open, self.close = self.bar.start, self.bar.stop

    def logs(self) -> logging.Handler:
        """A handler whose lines go above the bar."""
        from rich.highlighter import NullHighlighter
        from rich.logging import RichHandler

        return RichHandler(
            console=self.bar.console,
            highlighter=NullHighlighter(),
            show_time=False,
            show_level=False,
            show_path=False,
        )

    def move(self, iteration: int, left: str) -> None:
        self.bar.update(self.task, completed=iteration, left=left)

    def tell(self, facts: str) -> None:
        self.bar.update(self.task, facts=facts)


class Records:
    """metrics.jsonl, to which a resumed run appends without repeating an iteration."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path = path
        if path.exists():
            lines = [json.dumps(r) + "\n" for r in read_records(path) if r["iteration"] <= start]
            with replacing(path) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """A value that is not finite becomes null, which JSON has."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_finite(record)) + "\n")
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror}") from error


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl; a line that a crash cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(member) for member in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def losses_line(record: dict[str, Any]) -> str:
    """Loss, learning rate, speed, waiting for data, and memory, in one line."""
    return (
        f"loss {record['loss']:.4f}  lr {record['lr']:.2e}  "
        f"{record['images_per_second']:.1f} images/s  data {record['data_seconds']:.3f} s  "
        f"{record['memory_mib']:,.0f} MiB"
    )


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def draw_curves(records_path: Path, picture: Path) -> None:
    """Draw loss, learning rate and mean IoU over the iterations; needs matplotlib."""
    from matplotlib.figure import Figure

    records = read_records(records_path)
    panels = {"loss": "train", "lr": "train", "mean_iou": "validation"}
    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, (name, kind) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        points = [(r["iteration"], r[name]) for r in records if r["kind"] == kind]
        points = [point for point in points if point[1] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 30 else None)
        axes.set(title=name.replace("_", " ").replace("iou", "IoU"), xlabel="iteration")
        axes.grid(alpha=0.3)
    with replacing(picture) as temporary:
        figure.savefig(temporary, dpi=110)


def _event_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            'run.tensorboard=true needs TensorBoard: pip install "openseg[tensorboard]"'
        ) from error
    return SummaryWriter(folder / "tensorboard")
