# SPDX-License-Identifier: MIT
"""SegFix beside another network: labels near a border are taken from further inside."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openseg.build import load_predictor
from openseg.data import Normalize
from openseg.engine.inference import Inference, Size
from openseg.errors import CheckpointError, ConfigError
from openseg.models import SegmentationOutput, refine_labels
from openseg.models.segfix import MIRRORED_SCORES, SegFix


class Refinement:
    """The SegFix network of a checkpoint, which sees images as they are.

    slide: (height, width) of windows that are averaged where they overlap, each a third of it from
        the next; (512, 512), the training crop, in the published test. None: one pass.
    scale: steps from a border to where its label is taken from; published are 2, and 1 for masks of
        instances.
    options: further arguments of `Inference`, such as flip=True.

    Raises CheckpointError where the checkpoint cannot be read or has another network, ConfigError
    for windows that cannot be.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | torch.device = "auto",
        slide: Size | None = None,
        scale: int = 2,
        **options: Any,
    ) -> None:
        model, meta = load_predictor(path, device)
        if not isinstance(model, SegFix):
            name = model.arguments["name"]
            raise CheckpointError(f"{path}: its network is {name}, a segfix expected")
        if slide is not None:
            step = (max(slide[0] // 3, 1), max(slide[1] // 3, 1))
            options |= {"mode": "slide", "crop_size": slide, "stride": step}
        try:
            self.infer = Inference(_Scores(model), flip_pairs=MIRRORED_SCORES, **options)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        self.model = model
        self.scale = scale
        self.normalize = Normalize.from_dict(meta["normalize"])

    def __call__(self, image: np.ndarray, labels: Tensor) -> Tensor:
        """image: uint8 [h, w, 3] RGB. labels: [H, W], any dtype, of that image at any size."""
        pixels = torch.from_numpy(self.normalize(image))[None].to(self.infer.device)
        scores = self.infer.logits(pixels)
        offsets = self.model.offsets_of(scores, (labels.shape[0], labels.shape[1]))
        return refine_labels(labels[None], offsets.to(labels.device), self.scale)[0]


class _Scores(nn.Module):
    """Both outputs of a SegFix network as `Inference` wants them: in one map of scores."""

    def __init__(self, model: SegFix) -> None:
        super().__init__()
        self.model = model
        self.align_corners = model.align_corners

    def forward(self, images: Tensor) -> SegmentationOutput:
        return SegmentationOutput(self.model.scores(images), {})


class RefinedInference:
    """An `Inference` whose labels are refined.

    normalize: of the images that it is given, which SegFix may want normalised otherwise.
    """

    def __init__(self, infer: Inference, refine: Refinement, normalize: Normalize) -> None:
        self.infer = infer
        self.refine = refine
        self.normalize = normalize
        self.device = infer.device

    def __call__(self, images: Tensor, size: Size | None = None) -> Tensor:
        """images: one, normalised, float32 [C, h, w]. Labels as those of `Inference`, [H, W]."""
        labels = self.infer(images, size)
        return self.refine(self.normalize.undo(images.cpu().numpy()), labels)
