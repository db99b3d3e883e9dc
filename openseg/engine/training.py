# SPDX-License-Identifier: MIT
"""The training loop: steps, and what is due between them.

Losses stay on the device until a line of the log is due; a loss that is not finite is found then,
and before anything is saved, with the iteration that it came from. So are weights that an update
has spoilt: checkpoints are of finite weights alone.

Where an iteration is both validated and saved, last.pt is written before as well as after: whatever
ends a validation, even the system for want of memory, costs no training, and a resumed run begins
with that validation.
"""

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from openseg.engine.distributed import any_process, mean_over_processes
from openseg.engine.trainer import Trainer
from openseg.errors import TrainingError

_SAME_WISH_SECONDS = 2.0


class Metrics(Protocol):
    """What a validation returns."""

    @property
    def mean_iou(self) -> float: ...

    def to_dict(self) -> dict[str, Any]: ...


class Events(Protocol):
    """Who is told what happens; every process has one, most of which are silent."""

    def on_step(self, iteration: int) -> None: ...

    def on_losses(self, record: dict[str, Any]) -> None: ...

    def on_validation(self, iteration: int, metrics: Metrics, is_best: bool) -> None: ...


@dataclass
class Progress:
    """What the loop itself must remember over an interrupt."""

    best_mean_iou: float = -math.inf
    best_iteration: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)  # of the last validation
    awaits_validation: bool = False  # of this iteration, which is due and not done


@dataclass(frozen=True)
class Plan:
    """How long to train, and what is due how often; all in iterations but `patience`."""

    iterations: int
    log_every: int = 10
    validate_every: int = 1000
    save_every: int = 1000
    patience: int | None = None  # validations without a better mean IoU

    def is_due(self, iteration: int, every: int) -> bool:
        return iteration % every == 0 or iteration == self.iterations


def train(
    trainer: Trainer,
    batches: Iterator[dict[str, Tensor]],
    plan: Plan,
    progress: Progress,
    events: Events,
    validate: Callable[[nn.Module, int], Metrics],
    save: Callable[[Literal["last", "best"]], None],
) -> int | None:
    """Train from `trainer.iteration` to the end of the plan, or until SIGINT or SIGTERM.

    batches: endless; {"image": [B, C, H, W], "label": [B, H, W]}, the share of this process.
    validate: (network, iteration) -> metrics. Every process calls it, and gets the same.
    save: called with "last", before a validation and after it; between them with "best" where its
        mean IoU is the best so far.

    Returns the number of the signal that ended training early, or None. Raises TrainingError where
    a loss is not finite, or weights that would be validated or saved.
    """
    window = _Window(trainer)
    saved = trainer.iteration
    with _stop_signals() as signals:
        if progress.awaits_validation:
            _validate(trainer, progress, events, validate, save)
            save("last")
            window.restart()
            if _is_exhausted(plan, progress, trainer.iteration):
                return signals[0] if signals else None
        while trainer.iteration < plan.iterations:
            window.add(batches)
            iteration = trainer.iteration
            events.on_step(iteration)
            validating = plan.is_due(iteration, plan.validate_every)
            saving = plan.is_due(iteration, plan.save_every)
            meeting = validating or saving or plan.is_due(iteration, plan.log_every)
            stopping = _is_stopping(trainer, signals, meeting)
            if meeting or stopping:
                events.on_losses(window.close(saved))
            saving = saving or stopping
            if validating or saving:
                _refuse_broken_weights(trainer, saved)
            progress.awaits_validation = validating
            if saving:
                save("last")
                saved = iteration
            if validating:
                _validate(trainer, progress, events, validate, save)
                window.restart()
            exhausted = validating and _is_exhausted(plan, progress, iteration)
            if exhausted or (saving and validating):
                save("last")
            if stopping or exhausted:
                return signals[0] if signals else None
    return None


def try_out(trainer: Trainer, batches: Iterator[dict[str, Tensor]]) -> tuple[float, float]:
    """Take two steps, of which the first pays for warming up.

    Returns the loss and the seconds of the second. Raises TrainingError where `train` would.
    """
    window = _Window(trainer)
    for _ in range(2):
        begin = time.perf_counter()
        window.add(batches)
        record = window.close(saved=0)
        seconds = time.perf_counter() - begin
        _refuse_broken_weights(trainer, saved=0)
    return record["loss"], seconds


def _validate(
    trainer: Trainer,
    progress: Progress,
    events: Events,
    validate: Callable[[nn.Module, int], Metrics],
    save: Callable[[Literal["last", "best"]], None],
) -> None:
    metrics = validate(trainer.best_model, trainer.iteration)
    is_best = metrics.mean_iou > progress.best_mean_iou
    progress.metrics = metrics.to_dict()
    progress.awaits_validation = False
    if is_best:
        progress.best_mean_iou = metrics.mean_iou
        progress.best_iteration = trainer.iteration
        save("best")
    events.on_validation(trainer.iteration, metrics, is_best)


def _is_stopping(trainer: Trainer, signals: list[int], meeting: bool) -> bool:
    """Processes agree to stop at the iterations where they meet anyway."""
    if trainer.process.world_size == 1:
        return bool(signals)
    return meeting and any_process(bool(signals))


def _is_exhausted(plan: Plan, progress: Progress, iteration: int) -> bool:
    if plan.patience is None:
        return False
    return iteration - progress.best_iteration >= plan.patience * plan.validate_every


class _Window:
    """The iterations since the last line of the log."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.restart()

    def restart(self) -> None:
        self.losses: list[dict[str, Tensor]] = []
        self.waited = 0.0  # seconds without a batch
        self.samples = self.trainer.samples
        self.begin = time.perf_counter()

    def add(self, batches: Iterator[dict[str, Tensor]]) -> None:
        """Train on the next batch."""
        asked = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - asked
        self.losses.append(self.trainer.step(batch["image"], batch["label"]))

    def close(self, saved: int) -> dict[str, Any]:
        """The record of this window; a new one begins.

        saved: the iteration of the last checkpoint, which an error names.
        """
        names = list(self.losses[0])
        values = torch.stack([torch.stack(list(losses.values())) for losses in self.losses])
        values = mean_over_processes(values.float())  # [iterations, losses]
        first = self.trainer.iteration - len(self.losses) + 1
        _refuse_not_finite(values[:, names.index("loss")], first, saved)
        means = dict(zip(names, values.mean(dim=0).tolist(), strict=True))
        seconds = time.perf_counter() - self.begin
        record = {
            "iteration": self.trainer.iteration,
            **means,
            "lr": self.trainer.learning_rate,
            "images_per_second": (self.trainer.samples - self.samples) / seconds,
            "data_seconds": self.waited / len(self.losses),
            "memory_mib": peak_memory(self.trainer.process.device) / 2**20,
        }
        self.restart()
        return record


def _refuse_not_finite(losses: Tensor, first: int, saved: int) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        position = int(bad[0])
        raise TrainingError(
            f"the loss is {float(losses[position])} at iteration {first + position}"
            f"{_way_out(saved)}"
        )


def _refuse_broken_weights(trainer: Trainer, saved: int) -> None:
    name = trainer.broken_weights()
    if name is not None:
        raise TrainingError(
            f"{name} has values that are not finite after iteration {trainer.iteration}, where "
            f"its loss still was{_way_out(saved)}"
        )


def _way_out(saved: int) -> str:
    kept = (
        f"the last checkpoint is of iteration {saved}: go on from it, or start anew"
        if saved
        else "nothing was saved: start anew"
    )
    return (
        f"; {kept}, with a lower train.lr, with train.clip_grad_norm, or with more "
        "train.warmup_iterations; with train.amp=fp16 try bf16"
    )


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that PyTorch held on a GPU, or that this process held on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM are noted in; one that is sent again acts as usual.

    What comes within a moment of the first is the same wish: a terminal sends Ctrl-C to all
    processes, and torchrun or make then pass it on.
    """
    received: list[int] = []
    usual: dict[signal.Signals, Any] = {}
    first = math.inf

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        first = min(first, time.monotonic())
        received.append(number)
        if time.monotonic() - first > _SAME_WISH_SECONDS:
            for which, handler in usual.items():
                signal.signal(which, handler)
            signal.raise_signal(number)

    in_main = threading.current_thread() is threading.main_thread()  # others get no signals
    for which in (signal.SIGINT, signal.SIGTERM) if in_main else ():
        usual[which] = signal.signal(which, note)
    try:
        yield received
    finally:
        for which, handler in usual.items():
            signal.signal(which, handler)
