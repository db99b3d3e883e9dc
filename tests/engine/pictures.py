# SPDX-License-Identifier: MIT
"""A data set and a network without training, whose evaluation NumPy can follow."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from openseg.data import EvalTransform, Normalize
from openseg.engine.evaluation import evaluate
from openseg.engine.inference import Inference
from openseg.engine.submission import Submission
from tests.by_numpy import bilinear

CLASSES = 4
WEIGHTS = np.random.default_rng(5).standard_normal((CLASSES, 3))
NORMALIZE = Normalize((0.4, 0.5, 0.6), (0.2, 0.2, 0.2))


class Samples:
    """A data set whose `samples` are in memory."""

    def __len__(self):
        return len(self.samples)

    def load(self, index):
        return self.samples[index]


class Seer(nn.Module):
    """Takes the channels of an image for the logits of three classes."""

    align_corners = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return SimpleNamespace(main=images * self.weight)


class Pictures(Samples):
    """Smooth images of several sizes; labels are drawn, with some pixels to ignore."""

    info = SimpleNamespace(
        name="pictures", classes=tuple("abcd"), ignore_index=255, num_classes=CLASSES, palette=()
    )

    def __init__(self, labels=True):
        self.samples = []
        for index, (height, width) in enumerate([(24, 31), (37, 22), (20, 45)]):
            rng = np.random.default_rng(index)
            image = bilinear(rng.uniform(0, 256, (3, 5, 5)), (height, width))
            label = rng.integers(0, CLASSES + 1, (height, width)).astype(np.uint8)
            label[label == CLASSES] = 255
            image = np.moveaxis(image, 0, -1).astype(np.uint8)
            self.samples.append(SimpleNamespace(image=image, label=label, name=f"p/{index}"))
        if not labels:
            for sample in self.samples:
                sample.label = None


class Linear(nn.Module):
    """Stride 2: a linear map of every other pixel, and of its neighbour on the right."""

    align_corners = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(WEIGHTS).float())

    def forward(self, images):
        pixels = images[..., ::2, ::2] - images.roll(-1, -1)[..., ::2, ::2] / 2
        return SimpleNamespace(main=torch.einsum("kc,bchw->bkhw", self.weight, pixels))


def count_and_write(folder) -> Tensor:
    """The confusion matrix of all pictures; label maps of this process are written into folder."""
    infer = Inference(Linear(), scales=(0.5, 1.0), flip=True, multiple=4)
    transform, save = EvalTransform(NORMALIZE), Submission(folder)
    return evaluate(infer, Pictures(), transform, save=save).confusion
