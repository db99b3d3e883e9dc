# SPDX-License-Identifier: MIT
"""A look at every file of a split: what is there, what is wrong, and what would put it right.

Counts are of the values that stand in the label files, before any map, so that a wrong map shows.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from openseg.data.base import IGNORE_INDEX
from openseg.data.datasets.paired import UNKNOWN, PairedDataset, spans
from openseg.errors import DataError

Progress = Callable[[int, int], None]


class FileFacts(NamedTuple):
    """One sample: its size, the pixels of each value of its label, or what is wrong with it."""

    width: int = 0
    height: int = 0
    pixels: dict[int, int] | None = None
    fault: str | None = None


@dataclass
class SplitCheck:
    """What was found in a split.

    pixels, images: for each class, its pixels and the images with any of them.
    pixels_around: for each class, all counted pixels of those images.
    values: for each value of a file its pixels; stray: for those of no id the samples with them.
    faults: a text for each file that cannot be used. alone, passed_over: files that lack their
        other half, against the rules of the set or within them.
    """

    split: str
    dataset: PairedDataset
    pixels: np.ndarray
    images: np.ndarray
    pixels_around: np.ndarray
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    values: Counter[int] = field(default_factory=Counter)
    stray: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    faults: list[str] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)

    @property
    def ignored(self) -> int:
        """Pixels of no class."""
        return self.values.total() - int(self.pixels.sum())

    @property
    def absent(self) -> list[str]:
        """Classes without a pixel."""
        names = self.dataset.info.classes
        return [name for name, count in zip(names, self.pixels, strict=True) if not count]

    def add(self, name: str, facts: FileFacts) -> None:
        if facts.fault is not None:
            self.faults.append(facts.fault)
            return
        self.sizes[facts.width, facts.height] += 1
        if facts.pixels is None:
            return
        self.values.update(facts.pixels)
        known = set(self.dataset.known_values)
        here = np.zeros_like(self.pixels)
        for value, count in facts.pixels.items():
            train_id = self.dataset.train_ids[value]
            if value not in known:
                self.stray[value].append(name)
            if train_id not in (UNKNOWN, IGNORE_INDEX):
                here[train_id] += count
        self.pixels += here
        self.images += here > 0
        self.pixels_around[here > 0] += here.sum()


def check_split(
    dataset: PairedDataset, split: str, workers: int = 0, progress: Progress | None = None
) -> SplitCheck:
    """Open every image and label of a set that was made with strict=False."""
    zeros = np.zeros(dataset.info.num_classes, dtype=np.int64)
    check = SplitCheck(split, dataset, zeros, zeros.copy(), zeros.copy())
    for file, missing, expected in dataset.listing.alone:
        text = f"{file}: there is no {missing} for it; expected {expected}"
        within_rules = dataset.listing.labels_lead and missing == "label"
        (check.passed_over if within_rules else check.alone).append(text)
    pairs = dataset.listing.pairs
    loader: Any = torch.utils.data.DataLoader(_Files(dataset), batch_size=None, num_workers=workers)
    for done, (pair, facts) in enumerate(zip(pairs, loader, strict=True), 1):
        check.add(pair.name, facts)
        if progress is not None:
            progress(done, len(pairs))
    return check


def problems(check: SplitCheck, training: bool) -> list[str]:
    """What keeps the split from being trained on (or validated on), a text each."""
    info = check.dataset.info
    found = [*check.alone, *check.faults]
    if not check.dataset.listing.pairs:
        found.append("there is no image with a label")
    elif check.sizes and not check.values:
        found.append("no image has a label, as in a test split")
    for value, names in sorted(check.stray.items()):
        found.append(
            f"label value {value} is no id of {info.name}: {check.values[value]} pixels in "
            f"{len(names)} labels, such as {', '.join(names[:3])}; expected "
            f"{spans(check.dataset.known_values)}"
        )
    if check.values and not check.pixels.any():
        found.append("no pixel has a class: all are ignored")
    elif check.values and training and check.absent:
        found.append(f"{_absence(check)}: nothing to learn them from")
    return found


def notes(check: SplitCheck, training: bool) -> list[str]:
    """What is worth knowing and no mistake."""
    found = []
    if check.passed_over:
        found.append(f"{len(check.passed_over)} images without a label are left out")
    if check.pixels.any() and not training and check.absent:
        found.append(f"{_absence(check)}: without an IoU")
    return found


def _absence(check: SplitCheck) -> str:
    shown = ", ".join(check.absent[:8]) + (", …" if len(check.absent) > 8 else "")
    return f"{len(check.absent)} of {len(check.pixels)} classes are absent ({shown})"


def suggested_id_map(check: SplitCheck) -> tuple[dict[int, int], str] | None:
    """An `id_map` for own files whose values are no train ids, and why it may be the right one."""
    dataset, classes = check.dataset, check.dataset.info.num_classes
    values = sorted(check.values)
    if not values or dataset.id_map is not None:
        return None
    counted = [value for value in values if value != IGNORE_INDEX]
    if classes == 2 and values == [0, IGNORE_INDEX]:
        return {0: 0, IGNORE_INDEX: 1}, "these are masks of 0 and 255"
    if not check.stray:
        return None
    if counted[-1] == classes:
        shifted = {value: value - 1 for value in range(1, classes + 1)}
        return {0: IGNORE_INDEX, **shifted, IGNORE_INDEX: IGNORE_INDEX}, (
            "ids begin at 1; should 0 be a class of its own, name it first in the classes instead"
        )
    if len(counted) == classes:
        mapped = {value: train_id for train_id, value in enumerate(counted)}
        return {**mapped, IGNORE_INDEX: IGNORE_INDEX}, "there are as many values as classes"
    if len(values) == classes:
        return {value: train_id for train_id, value in enumerate(values)}, (
            "there are as many values as classes, 255 being one of them"
        )
    known = {value: value for value in (*range(classes), IGNORE_INDEX)}
    return known | dict.fromkeys(check.stray, IGNORE_INDEX), "this ignores what has no class"


def looks_like_train_ids(check: SplitCheck) -> bool:
    """Whether the files of a published set seem to hold train ids, not the published values."""
    info = check.dataset.info
    plain = tuple(range(info.num_classes))
    return (
        info.label_ids not in (None, plain)
        and bool(check.values)
        and set(check.values) <= {*plain, IGNORE_INDEX}
        and (IGNORE_INDEX in check.values or 3 * len(check.absent) >= info.num_classes)
    )


class _Files(torch.utils.data.Dataset):
    """The facts of each sample, read by the workers of a loader."""

    def __init__(self, dataset: PairedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> FileFacts:
        try:
            image, values = self.dataset.read(index)
        except DataError as error:
            return FileFacts(fault=str(error))
        height, width = image.shape[:2]
        if values is None:
            return FileFacts(width, height)
        pixels = np.bincount(values.ravel())
        counts = {int(value): int(pixels[value]) for value in pixels.nonzero()[0]}
        return FileFacts(width, height, counts)
