# SPDX-License-Identifier: MIT
"""Label maps for images that are no data set: one array, one file, or folders of files.

What a network needs to be used, its classes, colours and normalisation, comes with its checkpoint.
"""

import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from openseg.data import Normalize, open_image
from openseg.data.drawing import confidence_image, legend, overlay, save_label_png
from openseg.engine.files import make_folder, replacing
from openseg.engine.inference import Inference
from openseg.engine.progress import Progress
from openseg.errors import DataError, OutputError

SUFFIXES = {"labels": ".png", "overlay": ".jpg", "confidence": ".png"}
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Prediction(NamedTuple):
    """image: uint8 [H, W, 3] RGB; labels: uint8 [H, W]; confidence: float32 [H, W], the softmax
    probability of each label."""

    image: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray


class Predictor:
    """A network with all that it takes to use it on images as they are.

    >>> predict = Predictor(*openseg.build.load_predictor("best.pt"))
    >>> image, labels, confidence = predict("street.jpg")

    meta: "classes", "palette" and "normalize" as a checkpoint carries them, and "flip_pairs" where
        left and right are classes.
    options: arguments of `Inference`, such as scales=(0.5, 1.0) or flip=True.
    """

    def __init__(self, model: nn.Module, meta: Mapping[str, Any], **options: Any) -> None:
        self.infer = Inference(model, flip_pairs=meta.get("flip_pairs", ()), **options)
        self.classes: tuple[str, ...] = tuple(meta["classes"])
        self.palette = [(r, g, b) for r, g, b in meta["palette"]]
        self.normalize = Normalize.from_dict(meta["normalize"])

    def __call__(self, image: str | Path | np.ndarray) -> Prediction:
        """Predict one image: a file, or a uint8 array [H, W, 3] in RGB order.

        Raises DataError for a file that is no readable image.
        """
        pixels = image if isinstance(image, np.ndarray) else open_image(image)
        inputs = torch.from_numpy(self.normalize(pixels))
        labels, confidence = self.infer(inputs, confidence=True)
        return Prediction(pixels, labels.cpu().numpy(), confidence.cpu().numpy())


def find_images(inputs: Sequence[str]) -> list[Path]:
    """Image files named by files, folders (their own files, not those below) and glob patterns.

    Raises DataError for an input without an image and for two files whose results would have the
    same name.
    """
    found: dict[str, Path] = {}
    stems: dict[str, Path] = {}
    for word in inputs:
        for path in _images_of(word):
            if found.setdefault(os.path.realpath(path), path) is not path:
                continue
            if path.stem in stems:
                raise DataError(
                    f"{stems[path.stem]} and {path}: their results would have the same name "
                    f"({path.stem}); predict them into different folders"
                )
            stems[path.stem] = path
    return list(found.values())


def _images_of(word: str) -> list[Path]:
    path = Path(word)
    if path.is_file():
        return [path]
    if path.is_dir():
        images = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not images:
            raise DataError(f"{path}: no image in this folder ({' '.join(IMAGE_SUFFIXES)})")
        return images
    images = [Path(name) for name in sorted(glob.glob(word, recursive=True))]
    images = [path for path in images if path.is_file()]
    if not images:
        raise DataError(f"{word}: no such file or folder, and no file matches it as a pattern")
    return images


def predict_files(
    predictor: Predictor,
    images: Sequence[Path],
    output: str | Path,
    save: Sequence[str] = tuple(SUFFIXES),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[DataError]:
    """Predict image files into `output`/labels, /overlay and /confidence, named as the images.

    Labels are indexed PNGs with the palette of the classes; beside overlays lies legend.png.
    save: which of the three to write.
    overwrite: replace results that are there; without it they are an error before any work.
    progress: called with (done, all) after each image.

    An image that cannot be read is passed over; the errors of all of them are returned. Raises
    OutputError where results exist or cannot be written.
    """
    output = Path(output)
    if not overwrite:
        refuse_existing([path for image in images for path in _targets(image, output, save)])
    for kind in save:
        make_folder(output / kind)
    if "overlay" in save:
        with replacing(output / "legend.png") as path:
            Image.fromarray(legend(predictor.classes, predictor.palette)).save(path)
    unreadable: list[DataError] = []
    for done, image in enumerate(images, start=1):
        try:
            prediction = predictor(image)
        except DataError as error:
            unreadable.append(error)
        else:
            for kind, target in zip(save, _targets(image, output, save), strict=True):
                with replacing(target) as path:
                    _write(kind, path, prediction, predictor)
        if progress is not None:
            progress(done, len(images))
    return unreadable


def _targets(image: Path, output: Path, save: Sequence[str]) -> list[Path]:
    return [output / kind / f"{image.stem}{SUFFIXES[kind]}" for kind in save]


def refuse_existing(targets: Sequence[Path]) -> None:
    """OutputError where one of the files is there."""
    existing = [target for target in targets if target.exists()]
    if existing:
        more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
        raise OutputError(
            f"{existing[0]}{more}: there already; --overwrite replaces it, or choose another "
            "output folder"
        )


def _write(kind: str, path: Path, prediction: Prediction, predictor: Predictor) -> None:
    if kind == "labels":
        save_label_png(path, prediction.labels, predictor.palette)
    elif kind == "overlay":
        picture = overlay(prediction.image, prediction.labels, predictor.palette)
        Image.fromarray(picture).save(path, quality=92)
    else:
        Image.fromarray(confidence_image(prediction.confidence)).save(path)
