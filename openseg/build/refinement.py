# SPDX-License-Identifier: MIT
"""SegFix beside another network: labels near a border are taken from further inside.

Where from is said by a SegFix network, which sees the image, or by files of its offsets.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from openseg.build import load_predictor
from openseg.data import Dataset, Normalize, PairedDataset
from openseg.data.datasets.listing import require_files
from openseg.data.offset_files import read_offsets
from openseg.engine.inference import Inference, Size
from openseg.errors import CheckpointError, ConfigError, DataError
from openseg.models import SegmentationOutput, refine_labels
from openseg.models.segfix import MIRRORED_SCORES, SegFix


class OffsetsOf(Protocol):
    """Offsets of the image with this name: int64 [2, H, W], (down, right), of its own size unless
    another is given."""

    def __call__(self, name: str, image: np.ndarray | None, size: Size | None = None) -> Tensor: ...


class PredictedOffsets:
    """By the SegFix network of a checkpoint, which sees images as they are: uint8 [h, w, 3] RGB.

    slide: (height, width) of windows that are averaged where they overlap, each a third of it from
        the next; (512, 512), the training crop, in the published test. None: one pass.
    options: further arguments of `Inference`, such as flip=True.

    Raises CheckpointError where the checkpoint cannot be read or has another network, ConfigError
    for windows that cannot be.
    """

    def __init__(
        self,
        path: str | Path,
        device: str | torch.device = "auto",
        slide: Size | None = None,
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
        self.normalize = Normalize.from_dict(meta["normalize"])

    def __call__(self, name: str, image: np.ndarray | None, size: Size | None = None) -> Tensor:
        assert image is not None
        pixels = torch.from_numpy(self.normalize(image))[None].to(self.infer.device)
        size = size or (image.shape[0], image.shape[1])
        return self.model.offsets_of(self.infer.logits(pixels), size)[0]


class _Scores(nn.Module):
    """Both outputs of a SegFix network as `Inference` wants them: in one map of scores."""

    def __init__(self, model: SegFix) -> None:
        super().__init__()
        self.model = model
        self.align_corners = model.align_corners

    def forward(self, images: Tensor) -> SegmentationOutput:
        return SegmentationOutput(self.model.scores(images), {})


class KeptOffsets:
    """From the files NAME.mat of a folder, such as the published offset_semantic; no image is seen.

    Raises DataError where there is no such folder, and later where a file does not fit.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder; expected offsets, NAME.mat each")
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.mat"

    def require(self, names: Iterable[str]) -> None:
        """DataError where one of them has no file."""
        require_files(map(self.path, names), "expected the offsets of each image")

    def __call__(self, name: str, image: np.ndarray | None, size: Size | None = None) -> Tensor:
        offsets = read_offsets(self.path(name))
        if size is not None and offsets.shape[:2] != size:
            raise DataError(
                f"{self.path(name)}: offsets of {offsets.shape[1]}×{offsets.shape[0]} pixels "
                f"given, {size[1]}×{size[0]} expected: that is the size of the labels"
            )
        return torch.from_numpy(offsets).movedim(2, 0)


def find_offsets(
    path: Path, dataset: Dataset, device: str | torch.device, slide: Size | None
) -> OffsetsOf:
    """Those of a network, or of a folder, which must have the offsets of every image."""
    if not path.is_dir():
        return PredictedOffsets(path, device, slide)
    if slide is not None:
        raise ConfigError(f"--segfix-slide: belongs to a network, and {path} is a folder")
    kept = KeptOffsets(path)
    if isinstance(dataset, PairedDataset):
        kept.require(pair.name for pair in dataset.listing.pairs)
    return kept


class Refinement:
    """What `evaluate` does to the labels of an image.

    normalize: of the images that it is given, which SegFix may want normalised otherwise.
    scale: steps from a border to where its label is taken from; 2 is published.
    """

    def __init__(self, offsets_of: OffsetsOf, normalize: Normalize, scale: int = 2) -> None:
        self.offsets_of = offsets_of
        self.normalize = normalize
        self.scale = scale

    def __call__(self, name: str, image: Tensor, labels: Tensor) -> Tensor:
        """image: normalised, float32 [C, h, w]. labels: [H, W] of that image, at any size."""
        pixels = self.normalize.undo(image.cpu().numpy())
        offsets = self.offsets_of(name, pixels, (labels.shape[0], labels.shape[1]))
        return refine_labels(labels[None], offsets[None].to(labels.device), self.scale)[0]
