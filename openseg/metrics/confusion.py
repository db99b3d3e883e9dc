# SPDX-License-Identifier: MIT
"""Confusion matrix of whole data sets and the metrics that follow from it.

Counts are exact integers and are summed before anything is divided, so the result does not depend
on the order of the images, on their sizes or on the number of processes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from openseg.ops import confusion_matrix


@dataclass(frozen=True, eq=False)
class SegmentationMetrics:
    """What a confusion matrix says, each class by itself and all together.

    confusion: int64 [K, K] on the CPU; row = target, column = prediction, ignored pixels left out.
    class_names: K names.

    Metrics are float64 fractions in 0..1. A class without a pixel in either map has no IoU and a
    class without a pixel in the target has no accuracy: these are nan and the means pass over them,
    as in the published evaluation.
    """

    confusion: Tensor
    class_names: tuple[str, ...]

    @cached_property
    def iou(self) -> Tensor:
        """[K] intersection over union: TP / (row + column - TP)."""
        hits, rows, columns = self._sums
        return hits / (rows + columns - hits)

    @cached_property
    def class_accuracy(self) -> Tensor:
        """[K] recall, the share of the pixels of a class that are found: TP / row."""
        hits, rows, _ = self._sums
        return hits / rows

    @property
    def mean_iou(self) -> float:
        """Mean of `iou` over the classes that occur; nan without a single counted pixel."""
        return self.iou.nanmean().item()

    @property
    def mean_accuracy(self) -> float:
        """Mean of `class_accuracy` over the classes that occur in the target."""
        return self.class_accuracy.nanmean().item()

    @property
    def pixel_accuracy(self) -> float:
        """Share of all counted pixels that are right."""
        hits, rows, _ = self._sums
        return (hits.sum() / rows.sum()).item()

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Diagonal, row sums and column sums; float64 is exact up to 2**53 pixels."""
        counts = self.confusion
        return counts.diagonal().double(), counts.sum(1).double(), counts.sum(0).double()

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON and checkpoints; nan becomes None, which JSON can say."""
        classes = {
            name: {"iou": _plain(iou), "accuracy": _plain(accuracy), "pixels": pixels}
            for name, iou, accuracy, pixels in zip(
                self.class_names,
                self.iou.tolist(),
                self.class_accuracy.tolist(),
                self.confusion.sum(1).tolist(),
                strict=True,
            )
        }
        return {
            "mean_iou": _plain(self.mean_iou),
            "pixel_accuracy": _plain(self.pixel_accuracy),
            "mean_accuracy": _plain(self.mean_accuracy),
            "classes": classes,
        }

    def rows(self) -> list[tuple[str, str, str, str]]:
        """The table's cells, a row per class: name, IoU %, accuracy %, share of the pixels %."""
        pixels = self.confusion.sum(1).double()
        columns = (self.iou, self.class_accuracy, pixels / pixels.sum())
        cells = zip(*([percent(x) for x in column.tolist()] for column in columns), strict=True)
        return [(name, *row) for name, row in zip(self.class_names, cells, strict=True)]

    def summary(self) -> str:
        """The three figures of the tables in one line."""
        return (
            f"mIoU {percent(self.mean_iou)} %   pixel accuracy {percent(self.pixel_accuracy)} %   "
            f"mean accuracy {percent(self.mean_accuracy)} %"
        )

    def table(self) -> str:
        """IoU, accuracy and share of the pixels of each class as plain text, in percent."""
        table = [("class", "IoU %", "accuracy %", "pixels %"), *self.rows()]
        width = max(len(row[0]) for row in table)
        lines = [f"{row[0]:<{width}}" + "".join(f"{c:>12}" for c in row[1:]) for row in table]
        return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.summary()}"


class ConfusionMatrix:
    """Counts of (target, prediction) pairs over many images.

    num_classes: K. Targets are 0..K-1 or `ignore_index`; predictions are 0..K-1.
    class_names: K names for reports; "class 0", "class 1", … by default.
    device: where the counts live: with the NCCL backend it must be the GPU of the process.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        names = class_names or [f"class {index}" for index in range(num_classes)]
        if len(names) != num_classes:
            raise ValueError(f"class_names has {len(names)} names, num_classes is {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.class_names = tuple(names)
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Count integer maps of one shape, [H, W] or [B, H, W].

        Raises ValueError where the target holds a value that is neither a class nor the ignore
        index, or the prediction one that is no class.
        """
        counts = confusion_matrix(prediction, target, self.num_classes, self.ignore_index)
        self.matrix += counts.to(self.matrix.device)

    def reduce(self) -> None:
        """Sum over all processes, in place; nothing to do without torch.distributed.

        To be called once, after the last update: a second call would sum the sums.
        """
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(self.matrix)

    def result(self) -> SegmentationMetrics:
        """The metrics of what has been counted so far."""
        return SegmentationMetrics(self.matrix.cpu().clone(), self.class_names)


def percent(fraction: float) -> str:
    """Two decimals as the published tables have them; a dash for nan."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.2f}"


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
