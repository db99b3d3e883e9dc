# SPDX-License-Identifier: MIT
"""SegFix beside another network: labels near a border are taken from further inside."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openseg.build import load_predictor
from openseg.data import Normalize
from openseg.engine.inference import Inference, Size
from openseg.errors import CheckpointError
from openseg.models import refine_labels
from openseg.models.segfix import SegFix


class Refinement:
    """The SegFix network of a checkpoint, which sees images as they are.

    Raises CheckpointError where the checkpoint cannot be read or has another network.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "auto") -> None:
        model, meta = load_predictor(path, device)
        if not isinstance(model, SegFix):
            name = model.arguments["name"]
            raise CheckpointError(f"{path}: its network is {name}, a segfix expected")
        self.model = model
        self.normalize = Normalize.from_dict(meta["normalize"])
        self.device = next(model.parameters()).device

    def __call__(self, image: np.ndarray, labels: Tensor) -> Tensor:
        """image: uint8 [h, w, 3] RGB. labels: [H, W], any dtype, of that image at any size."""
        pixels = torch.from_numpy(self.normalize(image))[None].to(self.device)
        offsets = self.model.predict_offsets(pixels, (labels.shape[0], labels.shape[1]))
        return refine_labels(labels[None], offsets.to(labels.device))[0]


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
