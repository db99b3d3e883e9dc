# SPDX-License-Identifier: MIT
"""Running a network over a data set and counting what it gets right.

Images go through one at a time at their own sizes; several processes share the data set, each
image is counted by exactly one of them, and all of them return the metrics of the whole.
"""

from collections.abc import Callable, Sized
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from openseg.engine.inference import Inference
from openseg.engine.progress import Progress
from openseg.errors import DataError, OpensegError
from openseg.metrics import ConfusionMatrix, SegmentationMetrics


def evaluate(
    infer: Inference,
    dataset: Any,
    transform: Callable[[Any], tuple[Any, Any]],
    num_classes: int | None = None,
    *,
    workers: int = 0,
    progress: Progress | None = None,
    refine: Callable[[str, Tensor, Tensor], Tensor] | None = None,
    save: Callable[[str, Tensor], None] | None = None,
) -> SegmentationMetrics:
    """Metrics of `infer` on a data set with labels.

    dataset: `dataset.load(index)` -> sample with a label; `dataset.info` has the class names.
    transform: sample -> (image float32 [C, H, W], label uint8 [h, w]) arrays. Where the transform
        resizes the image but not the label, predictions are brought to the label's size.
    refine: (name, image [C, H, W], labels [h, w]) -> the labels to count and save for them.
    save: called with the name of each image of this process and its labels [h, w]. Images may then
        lack a label: they are predicted, at the size of the sample's image, and not counted.
    num_classes: classes of the network; the data set must have as many.
    workers: processes that read images ahead.
    progress: called with (done, all) images of this process after each of them.

    Raises DataError where the number of classes differs, an image has no label, or a label map
    holds a value that is no class.
    """
    info = dataset.info
    check_classes(info, info.num_classes if num_classes is None else num_classes)
    confusion = ConfusionMatrix(info.num_classes, info.ignore_index, info.classes, infer.device)
    indices = _share_of_this_process(dataset)
    loader = DataLoader(
        _Prepared(dataset, transform, unlabelled=save is not None),
        batch_size=None,
        sampler=indices,
        num_workers=workers,
        pin_memory=infer.device.type == "cuda",
        generator=torch.Generator(),  # a validation leaves the random numbers of training alone
    )
    for done, item in enumerate(loader, start=1):
        if isinstance(item, OpensegError):
            raise item
        image, label, size, name = item
        prediction = infer(image, size=size)
        if refine is not None:
            prediction = refine(name, image, prediction)
        if label is not None:
            _count(confusion, prediction, label.to(infer.device, non_blocking=True), name)
        if save is not None:
            save(name, prediction)
        if progress is not None:
            progress(done, len(indices))
    confusion.reduce()
    return confusion.result()


def check_classes(info: Any, num_classes: int) -> None:
    """DataError unless the data set has as many classes as the network."""
    if info.num_classes != num_classes:
        raise DataError(
            f"the network has {num_classes} classes and the data set {info.name!r} has "
            f"{info.num_classes} ({_few(info.classes)}): evaluate on the data set that the network "
            "was trained for, or train a network for this one"
        )


class _Prepared(Dataset[Any]):
    """Image, label, size of the label and name as a loader's worker makes them.

    A user's error is returned, not raised: a loader would wrap it in the worker's traceback.
    """

    def __init__(
        self, dataset: Any, transform: Callable[[Any], tuple[Any, Any]], unlabelled: bool
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.unlabelled = unlabelled

    def __getitem__(self, index: int) -> tuple[Tensor, Any, tuple[int, int], str] | OpensegError:
        try:
            sample = self.dataset.load(index)
        except OpensegError as error:
            return error
        if sample.label is None and not self.unlabelled:
            return DataError(f"{sample.name}: has no label map; evaluation needs one per image")
        image, label = self.transform(sample)
        height, width = sample.image.shape[:2]
        if label is not None:
            label = torch.as_tensor(label)
            height, width = label.shape
        return torch.as_tensor(image), label, (height, width), sample.name


def _share_of_this_process(dataset: Sized) -> range:
    if dist.is_available() and dist.is_initialized():
        return range(dist.get_rank(), len(dataset), dist.get_world_size())
    return range(len(dataset))


def _count(confusion: ConfusionMatrix, prediction: Tensor, label: Tensor, name: str) -> None:
    try:
        confusion.update(prediction, label)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from error


def _few(names: tuple[str, ...], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
