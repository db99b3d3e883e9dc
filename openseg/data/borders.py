# SPDX-License-Identifier: MIT
"""A data set as SegFix learns it: how far the border is, and which way is inwards.

Distances of a large label map take seconds, so they can be kept in a folder.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from openseg.data.base import UNREADABLE, Dataset, DatasetInfo, Sample, unreadable
from openseg.data.offset_files import read_targets
from openseg.data.offsets import border_offsets
from openseg.data.transforms import TrainTransform
from openseg.errors import DataError, OutputError

_CLASSES = ("interior", "boundary")
_PALETTE = ((70, 70, 70), (255, 255, 255))


class BorderOffsets:
    """Samples of `dataset` whose label is uint8 [H, W, 3]: label, distance and direction of
    `border_offsets`.

    folder: where distance and direction are kept once they are computed, as NAME.png. A NAME.mat
        of the published dt_offset that lies there is read in its place.
    instances: the instance map of an index, integers [H, W] that differ from one instance to the
        next. With it the borders are theirs, however small an instance is.
    """

    def __init__(
        self,
        dataset: Dataset,
        folder: str | Path | None = None,
        instances: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self.dataset = dataset
        self.folder = None if folder is None else Path(folder)
        self.instances = instances
        self.info = DatasetInfo(dataset.info.name, _CLASSES, _PALETTE, dataset.info.ignore_index)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index)

    def load(self, index: int) -> Sample:
        sample = self.dataset.load(index)
        if sample.label is None:
            return sample
        offsets = self._offsets(index, sample.name, sample.label)
        return sample._replace(label=np.concatenate([sample.label[..., None], offsets], axis=2))

    def _offsets(self, index: int, name: str, label: np.ndarray) -> np.ndarray:
        """Distance and direction, uint8 [H, W, 2]."""
        path = None if self.folder is None else self.folder / f"{name}.png"
        if path is not None:
            for kept in (path, path.with_suffix(".mat")):
                if kept.exists():
                    return _read(kept, label.shape)
        ignore = self.info.ignore_index
        if self.instances is None:
            offsets = np.stack(border_offsets(label, ignore), axis=2)
        else:
            instances = self.instances(index)
            if instances.shape != label.shape:
                raise DataError(
                    f"{name}: instances of shape {instances.shape}, {label.shape} expected, that "
                    "of its label"
                )
            regions = np.where(label == ignore, ignore, instances)
            offsets = np.stack(border_offsets(regions, ignore, smallest=0), axis=2)
        if path is not None:
            _write(path, offsets)
        return offsets


class BorderMasks(BorderOffsets):
    """The same with labels to validate on, uint8 [H, W]: 1 up to `width` pixels from a border."""

    def __init__(
        self,
        dataset: Dataset,
        folder: str | Path | None = None,
        instances: Callable[[int], np.ndarray] | None = None,
        width: float = 5.0,
    ) -> None:
        super().__init__(dataset, folder, instances)
        self.width = width

    def load(self, index: int) -> Sample:
        sample = super().load(index)
        if sample.label is None:
            return sample
        label, distance, _ = np.moveaxis(sample.label, 2, 0)
        ignored = label == self.info.ignore_index
        return sample._replace(label=np.where(ignored, label, distance <= self.width))


class BorderTransform(TrainTransform):
    """`TrainTransform` of the samples of `BorderOffsets`: targets are uint8 [3, h, w]."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, target = super().__call__(sample, rng)
        return image, np.ascontiguousarray(target.transpose(2, 0, 1))

    def _mirror(self, label: np.ndarray) -> np.ndarray:
        """Half of 180° + an angle becomes that of the mirrored angle."""
        mirrored = label[:, ::-1].copy()
        half = mirrored[..., 2].astype(np.int16)
        mirrored[..., 2] = np.where(half < 90, 90, 270) - half
        return mirrored


def _read(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    offsets = read_targets(path) if path.suffix == ".mat" else _open(path)
    if offsets.shape != (*shape, 2):
        raise DataError(
            f"{path}: distances and directions of shape {offsets.shape}, {(*shape, 2)} expected "
            "for this label: remove the file, which is then made anew"
        )
    return offsets


def _open(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as file:
            return np.array(file)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _write(path: Path, offsets: np.ndarray) -> None:
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(offsets).save(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
