# SPDX-License-Identifier: MIT
"""Validation during training: metrics of the whole split, and pictures of a few of its images."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from openseg.data import Dataset, EvalTransform
from openseg.engine.evaluation import Progress, evaluate
from openseg.engine.inference import Inference
from openseg.engine.samples import draw_samples
from openseg.metrics import SegmentationMetrics


class Validation:
    """Evaluates a network when called with it and the iteration; keeps the last metrics.

    inference: network -> how it sees an image.
    samples: images to draw into `folder`, by the first process.
    progress: called with (done, all) after each image.
    """

    def __init__(
        self,
        dataset: Dataset,
        transform: EvalTransform,
        inference: Callable[[nn.Module], Inference],
        *,
        workers: int = 0,
        samples: int = 0,
        folder: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.inference = inference
        self.workers = workers
        self.samples = samples
        self.folder = folder
        self.progress = progress
        self.metrics: SegmentationMetrics | None = None

    def __call__(self, model: nn.Module, iteration: int) -> SegmentationMetrics:
        infer = self.inference(model)
        self.metrics = evaluate(
            infer, self.dataset, self.transform, workers=self.workers, progress=self.progress
        )
        is_main = not dist.is_initialized() or dist.get_rank() == 0
        if self.samples and self.folder is not None and is_main:
            self.folder.mkdir(exist_ok=True)
            picture = self.folder / f"iteration_{iteration:08d}.png"
            draw_samples(infer, self.dataset, self.transform, self.samples, picture)
        return self.metrics

    def seconds_per_image(self, model: nn.Module) -> float:
        """The time of the network for the first image."""
        image, _ = self.transform(self.dataset.load(0))
        infer = self.inference(model)
        begin = time.perf_counter()
        labels = torch.as_tensor(infer(torch.as_tensor(image)))
        labels.cpu()  # a GPU is done when its result is here
        return time.perf_counter() - begin
