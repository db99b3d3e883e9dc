# SPDX-License-Identifier: MIT
"""From a `Sample` to what a network takes: the published augmentation, and normalisation.

Order and arithmetic are those of openseg.pytorch; options give those of the HRNet and OCNet
repositories. All chance comes from (seed, epoch, index): neither the number of workers nor a
resumed run changes a sample.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch

from openseg.data.base import IGNORE_INDEX, Dataset, Sample
from openseg.data.resampling import Interpolation, Size, Window, resize_image, resize_label
from openseg.errors import DataError

Order = Literal["resize_first", "flip_first"]
Padding = Literal["random", "right_down"]


@dataclass(frozen=True)
class Normalize:
    """(pixel / divisor - mean) / std for each channel, the channels in `channel_order`.

    mean and std follow the order of the *output* channels. Some released networks expect BGR
    images with means in RGB order, or RGB images with means in BGR order: both can be said here.
    """

    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    divisor: float = 255.0
    channel_order: Literal["RGB", "BGR"] = "RGB"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        object.__setattr__(self, "divisor", float(self.divisor))
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}")
        if self.channel_order not in ("RGB", "BGR"):
            raise ValueError(f"channel_order: {self.channel_order!r}; expected 'RGB' or 'BGR'")

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 [H, W, C] RGB to float32 [C, H, W], contiguous."""
        if image.ndim != 3 or image.shape[2] != len(self.mean):
            raise ValueError(f"image: shape {image.shape}; expected [H, W, {len(self.mean)}]")
        scale, shift = self._scale_and_shift()
        tables = np.arange(256, dtype=np.float32) * scale[:, 0] + shift[:, 0]  # [C, 256]
        channels = self._reorder(image.transpose(2, 0, 1))
        return np.stack([table[values] for table, values in zip(tables, channels, strict=True)])

    def undo(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [C, H, W] back to uint8 [H, W, C] RGB."""
        scale, shift = self._scale_and_shift()
        image = np.clip(np.rint((pixels - shift) / scale), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(self._reorder(image).transpose(1, 2, 0))

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for checkpoints."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Normalize":
        return cls(**values)

    def _scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        """float32 [C, 1, 1] both; rounded once, from float64."""
        mean, std = np.array(self.mean), np.array(self.std)
        scale, shift = 1 / (self.divisor * std), -mean / std
        return (
            scale[:, None, None].astype(np.float32),
            shift[:, None, None].astype(np.float32),
        )

    def _reorder(self, channels: np.ndarray) -> np.ndarray:
        return channels[::-1] if self.channel_order == "BGR" else channels


@dataclass(frozen=True)
class TrainTransform:
    """Resizes, crop, flip and brightness, then normalisation and padding.

    crop_size: (height, width) of what comes out, whatever the size of the image.
    order: "resize_first" is resize, crop, flip; "flip_first" is flip, resize, crop. A mirrored
        label is sampled at other pixels, so the two differ.
    fixed_size, min_side: at most one. The image is first resized to that (height, width), or so
        that its shorter side has that length (the other one rounded to nearest).
    scale_range, aspect_range: with s and a drawn uniformly from them, the image becomes
        W·s·√a wide and H·s/√a high, both rounded down.
    scale_step: draw s from the lowest scale, a step more, and so on up to the highest.
    long_side: the longer side becomes long_side·s instead and the other one follows, both rounded
        to nearest; with neither aspect nor a resize before.
    flip: mirror left and right with probability ½; flip_pairs names the classes that trade places
        then (left and right arm).
    brightness: one integer of [-brightness, brightness] is added to all values, clipped to 0..255.
    padding: what the crop lacks is added at a "random" offset or at "right_down", to the image as 0
        *after* normalisation, to the label as 255.
    """

    crop_size: Size
    normalize: Normalize = Normalize()
    order: Order = "resize_first"
    fixed_size: Size | None = None
    min_side: int | None = None
    scale_range: tuple[float, float] = (0.5, 2.0)
    scale_step: float | None = None
    aspect_range: tuple[float, float] = (0.9, 1.1)
    long_side: int | None = None
    interpolation: Interpolation = "cubic"
    flip: bool = True
    flip_pairs: Sequence[tuple[int, int]] = ()
    brightness: int = 10
    padding: Padding = "random"

    def __post_init__(self) -> None:
        if min(self.crop_size) < 1:
            raise ValueError(f"crop_size: {self.crop_size}; expected (height, width) of 1 or more")
        for name in ("scale_range", "aspect_range"):
            low, high = getattr(self, name)
            if not 0 < low <= high:
                raise ValueError(f"{name}: ({low}, {high}); expected 0 < low <= high")
        for name, kind in (
            ("order", Order),
            ("interpolation", Interpolation),
            ("padding", Padding),
        ):
            if getattr(self, name) not in get_args(kind):
                expected = " or ".join(map(repr, get_args(kind)))
                raise ValueError(f"{name}: {getattr(self, name)!r}; expected {expected}")
        sides = [s for s in (self.fixed_size, self.min_side, self.long_side) if s is not None]
        if len(sides) > 1 or any(np.min(side) < 1 for side in sides):
            raise ValueError(
                f"fixed_size: {self.fixed_size}, min_side: {self.min_side}, long_side: "
                f"{self.long_side}; expected one of them at most, of 1 or more"
            )
        if self.long_side is not None and tuple(self.aspect_range) != (1, 1):
            raise ValueError(f"aspect_range: {self.aspect_range}; expected (1, 1) with long_side")
        if self.scale_step is not None and self.scale_step <= 0:
            raise ValueError(f"scale_step: {self.scale_step}; expected a number above 0, or None")
        if not 0 <= self.brightness <= 255:
            raise ValueError(f"brightness: {self.brightness}; expected 0 to 255")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """image float32 [C, h, w] and label uint8 [h, w], both of crop_size."""
        image, label = sample.image, _label_of(sample)
        if self.order == "flip_first":
            image, label = self._flip(image, label, rng)
        first = first_size(label.shape[:2], self.fixed_size, self.min_side)
        size = self._draw_size(first or label.shape[:2], rng)
        window = self._draw_window(size, rng)
        image = resize_image(image, size, window, self.interpolation, first)
        label = resize_label(label, size, window, first)
        if self.order == "resize_first":
            image, label = self._flip(image, label, rng)
        if self.brightness:
            shift = rng.integers(-self.brightness, self.brightness, endpoint=True)
            image = np.clip(np.arange(256) + shift, 0, 255).astype(np.uint8)[image]
        return self._pad(self.normalize(image), label, rng)

    def _flip(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        if self.flip and rng.random() < 0.5:
            return image[:, ::-1], self._mirror(label)
        return image, label

    def _mirror(self, label: np.ndarray) -> np.ndarray:
        return _swap(label[:, ::-1], self.flip_pairs)

    def _draw_size(self, size: Size, rng: np.random.Generator) -> Size:
        height, width = size
        scale, aspect = self._draw_scale(rng), rng.uniform(*self.aspect_range)
        if self.long_side is not None:
            side = int(self.long_side * scale + 0.5)
            height, width = (int(s * side / max(size) + 0.5) for s in size)
        else:
            height = int(height * (math.sqrt(1 / aspect) * scale))
            width = int(width * (math.sqrt(aspect) * scale))
        return max(height, 1), max(width, 1)

    def _draw_scale(self, rng: np.random.Generator) -> float:
        low, high = self.scale_range
        if self.scale_step is None:
            return rng.uniform(low, high)
        steps = int((high - low) / self.scale_step + 1e-6)
        drawn = low + self.scale_step * int(rng.integers(steps, endpoint=True))
        return round(drawn, 9)  # 0.8, not 0.8000000000000002, which could tip a size over

    def _draw_window(self, size: Size, rng: np.random.Generator) -> Window:
        height, width = (min(*pair) for pair in zip(self.crop_size, size, strict=True))
        top = rng.integers(size[0] - height, endpoint=True)
        left = rng.integers(size[1] - width, endpoint=True)
        return Window(int(top), int(left), height, width)

    def _pad(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        height, width = label.shape[:2]
        if (height, width) == self.crop_size:
            return image, np.ascontiguousarray(label)
        top, left = 0, 0
        if self.padding == "random":
            top = int(rng.integers(self.crop_size[0] - height, endpoint=True))
            left = int(rng.integers(self.crop_size[1] - width, endpoint=True))
        padded_image = np.zeros((image.shape[0], *self.crop_size), dtype=np.float32)
        padded_label = np.full((*self.crop_size, *label.shape[2:]), IGNORE_INDEX, dtype=np.uint8)
        padded_image[:, top : top + height, left : left + width] = image
        padded_label[top : top + height, left : left + width] = label
        return padded_image, padded_label


@dataclass(frozen=True)
class EvalTransform:
    """Normalisation, of the image as it is or at the size that a protocol gives it.

    fixed_size, min_side: at most one; as in `TrainTransform`, by a cubic resize. The label keeps
        its size: predictions are brought to it.
    """

    normalize: Normalize = Normalize()
    fixed_size: Size | None = None
    min_side: int | None = None

    def __call__(self, sample: Sample) -> tuple[np.ndarray, np.ndarray | None]:
        """image float32 [C, h, w], and the label of the sample, uint8 [H, W] or None."""
        image = sample.image
        size = first_size(image.shape[:2], self.fixed_size, self.min_side)
        if size is not None:
            image = resize_image(image, size, Window(0, 0, *size), "cubic")
        return self.normalize(image), sample.label


class TrainSet(torch.utils.data.Dataset):
    """A data set under a transform, addressed by (epoch, index): the keys of `ResumableSampler`."""

    def __init__(self, dataset: Dataset, transform: TrainTransform, seed: int = 0) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, torch.Tensor]:
        """{"image": float32 [C, h, w], "label": uint8 [h, w] of train ids and 255}."""
        epoch, index = key
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, epoch, index)))
        image, label = self.transform(self.dataset.load(index), rng)
        return {"image": torch.from_numpy(image), "label": torch.from_numpy(label)}


def first_size(size: Size, fixed_size: Size | None, min_side: int | None) -> Size | None:
    """The size that an image of `size` is resized to first, where it is."""
    if min_side is None:
        return fixed_size
    ratio = min_side / min(size)
    return round(size[0] * ratio), round(size[1] * ratio)


def _label_of(sample: Sample) -> np.ndarray:
    if sample.label is None:
        raise DataError(f"{sample.name}: the sample has no label; training and evaluation need one")
    return sample.label


def _swap(label: np.ndarray, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    if not pairs:
        return label
    table = np.arange(256, dtype=np.uint8)
    for left, right in pairs:
        table[[left, right]] = right, left
    return table[label]
