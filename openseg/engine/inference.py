# SPDX-License-Identifier: MIT
"""From normalised images to label maps: whole images, sliding windows, several scales, mirrored.

Where one pass at the image's own size suffices, labels come straight from the low-resolution
logits and no [B, K, H, W] tensor exists. Several scales or windows need one, as a sum, and never
more than a few, whatever the number of scales.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openseg.ops import upsample_argmax

Size = tuple[int, int]


class Inference:
    """Runs a network on images of any size and returns labels at their original size.

    It follows the published evaluation of these networks:

    - multiple: the image is padded right and below to a multiple of it with 0, the mean colour
      after normalisation; what belongs to the padding is cut off in the end.
    - whole: the image passes once at its size; logits are upsampled bilinearly to it.
    - slide: windows of `crop_size`, `stride` apart (the same by default); the last one of a row or
      column is moved back to the border, and logits are averaged where windows overlap. A smaller
      image is padded as above, and its logits are cropped back. Scales below `slide_from` are seen
      whole.
    - scales: the image is resized (bilinear, align_corners=True) to `int(height * scale)` by
      `int(width * scale)`; the logits are upsampled to that size as above, brought back to the size
      of the image bilinearly, and summed as they are, without a softmax.
    - flip: each pass is repeated on the mirrored image and the logits are mirrored back and added,
      with the classes of `flip_pairs` exchanged: a mirrored left arm is a right arm.
    - combine: "exp" sums the exponentials of the logits (each the mean of both passes under `flip`)
      over windows and scales, as HRNet-Semantic-Segmentation does.
    - Where a size is asked for that is not the image's, the sum is brought to it by a bicubic
      resize (bilinear for "exp").

    Sums are kept as means: the labels are the same, and the confidence, the softmax probability of
    the label, then belongs to logits of the usual range.

    model: a network with `model(images).main` -> logits [B, K, h, w] and `model.align_corners`. It
        is run in eval mode and left in the mode it was in.
    crop_size, stride: (height, width) in pixels.
    device: where to run; by default where the parameters of the model are.
    amp_dtype: bfloat16 or float16 runs the network under autocast; logits are summed in float32.
    """

    def __init__(
        self,
        model: nn.Module,
        mode: Literal["whole", "slide"] = "whole",
        crop_size: Size | None = None,
        stride: Size | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        device: torch.device | str | None = None,
        amp_dtype: torch.dtype | None = None,
        *,
        flip_pairs: Sequence[tuple[int, int]] = (),
        multiple: int = 1,
        slide_from: float = 1.0,
        combine: Literal["logits", "exp"] = "logits",
    ) -> None:
        _check(mode, crop_size, stride, scales, multiple, combine)
        self.model = model
        self.align_corners = bool(model.align_corners)
        self.crop_size = crop_size
        self.stride = stride or crop_size
        self.scales = tuple(scales)
        self.flip = flip
        self.flip_pairs = tuple(flip_pairs)
        self.multiple = multiple
        self.slide_from = slide_from
        self.combine = combine
        self.device = torch.device(device or next(model.parameters()).device)
        self.amp_dtype = amp_dtype

    @overload
    def __call__(
        self, images: Tensor, size: Size | None = None, confidence: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def __call__(
        self, images: Tensor, size: Size | None = None, *, confidence: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def __call__(
        self, images: Tensor, size: Size | None = None, confidence: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Labels of one image or of a batch of equal sizes.

        images: normalised float32 [C, H, W] or [B, C, H, W], on any device.
        size: (height, width) of the result, where the images were resized on their way here.
        Returns labels [H, W] or [B, H, W], uint8 (int64 above 256 classes), and with `confidence`
        also float32 probabilities of that shape.
        """
        batch = images[None] if images.ndim == 3 else images
        batch = batch.to(self.device)
        border = (batch.shape[-2], batch.shape[-1])
        size = size or border
        batch = _pad(batch, *(-(-side // self.multiple) * self.multiple for side in border))
        padded = (batch.shape[-2], batch.shape[-1])
        logits = self.logits(batch)
        if size == border:
            size = padded
        else:
            logits = _resize(logits, padded, self.align_corners)[..., : border[0], : border[1]]
            logits, border = self._at_size(logits, size), size
        result = upsample_argmax(logits, size, confidence, align_corners=self.align_corners)
        labels, *probabilities = result if confidence else (result,)
        cut = [x[..., : border[0], : border[1]] for x in (labels, *probabilities)]
        cut = [x[0] for x in cut] if images.ndim == 3 else cut
        return (cut[0], cut[1]) if confidence else cut[0]

    def logits(self, images: Tensor) -> Tensor:
        """What the labels are the greatest of, float32 [B, K, h, w], of images [B, C, H, W].

        Where one pass suffices, h and w are those of its features; otherwise H and W.
        """
        one_pass = self.crop_size is None and self.scales == (1.0,)
        with torch.no_grad(), _eval_mode(self.model):
            return self._network(images) if one_pass else self._mean_over_scales(images)

    def _at_size(self, logits: Tensor, size: Size) -> Tensor:
        if logits.shape[-2:] == size:
            return logits
        if self.combine == "exp":
            return _log(_resize(logits.exp(), size, self.align_corners))
        return F.interpolate(logits, size, mode="bicubic", align_corners=False)

    def _network(self, images: Tensor) -> Tensor:
        """Low-resolution float32 logits [B, K, h, w], averaged with the mirrored pass.

        Bilinear upsampling is linear and symmetric, so mirroring back can come before it.
        """
        logits = self._main_logits(images)
        if self.flip:
            mirrored = self._main_logits(images.flip(-1)).flip(-1)
            order = list(range(logits.shape[1]))
            for one, other in self.flip_pairs:
                order[one], order[other] = other, one
            logits = (logits + mirrored[:, order]) / 2
        return logits

    def _main_logits(self, images: Tensor) -> Tensor:
        enabled = self.amp_dtype is not None
        with torch.autocast(self.device.type, dtype=self.amp_dtype, enabled=enabled):
            return self.model(images).main.float()

    def _mean_over_scales(self, images: Tensor) -> Tensor:
        """Mean logits [B, K, H, W] of all scales of images [B, C, H, W]."""
        total: Tensor | None = None
        height, width = images.shape[-2:]
        for scale in self.scales:
            scaled = (max(int(height * scale), 1), max(int(width * scale), 1))
            inputs = _resize(images, scaled, align_corners=True)
            slides = self.crop_size is not None and scale >= self.slide_from
            scores = self._slide(inputs) if slides else self._whole(inputs)
            scores = _resize(scores, (height, width), self.align_corners)
            if total is None:
                total = torch.zeros_like(scores)
            total += scores
        assert total is not None
        total.div_(len(self.scales))
        return _log(total) if self.combine == "exp" else total

    def _whole(self, images: Tensor) -> Tensor:
        """What is summed, [B, K, H, W], of the images [B, C, H, W] in one pass."""
        size = (images.shape[-2], images.shape[-1])
        logits = _resize(self._network(images), size, self.align_corners)
        return logits.exp() if self.combine == "exp" else logits

    def _slide(self, images: Tensor) -> Tensor:
        """What is summed, [B, K, H, W], averaged over the windows that see a pixel."""
        assert self.crop_size is not None
        assert self.stride is not None
        (rows, columns), (height, width) = self.crop_size, images.shape[-2:]
        images = _pad(images, max(rows, height), max(columns, width))
        count = images.new_zeros(images.shape[-2:])
        total: Tensor | None = None
        for top in window_starts(images.shape[-2], rows, self.stride[0]):
            for left in window_starts(images.shape[-1], columns, self.stride[1]):
                window = (..., slice(top, top + rows), slice(left, left + columns))
                logits = self._whole(images[window])
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], *count.shape)
                total[window] += logits
                count[window] += 1
        assert total is not None
        return total.div_(count)[..., :height, :width]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows that cover 0..length-1, the last one aligned to the end."""
    last = max(length - window, 0)
    return [*range(0, last, stride), last]


def _check(
    mode: str,
    crop_size: Size | None,
    stride: Size | None,
    scales: Sequence[float],
    multiple: int,
    combine: str,
) -> None:
    if mode not in ("whole", "slide"):
        raise ValueError(f"mode is {mode!r}; it must be 'whole' or 'slide'")
    if (mode == "slide") != (crop_size is not None):
        raise ValueError("crop_size belongs to mode='slide', which cannot do without it")
    if stride is not None and crop_size is None:
        raise ValueError("stride belongs to mode='slide'")
    if crop_size is not None and min(crop_size) < 1:
        raise ValueError(
            f"crop_size, the (height, width) of a sliding window, is {crop_size}; both must be at "
            "least 1 pixel"
        )
    if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
        raise ValueError(
            f"scales are {tuple(scales)}; at least one is needed, all finite and above 0"
        )
    steps = zip(stride or (), crop_size or (), strict=False)
    if not all(0 < step <= side for step, side in steps):
        raise ValueError(f"stride {stride} must lie in 1..crop_size, which is {crop_size}")
    if multiple < 1:
        raise ValueError(f"multiple is {multiple}; it must be at least 1")
    if combine not in ("logits", "exp"):
        raise ValueError(f"combine is {combine!r}; it must be 'logits' or 'exp'")


def _log(sums: Tensor) -> Tensor:
    """Back to logits; what has vanished stays finite."""
    return sums.clamp_(min=torch.finfo(sums.dtype).tiny).log_()


def _pad(images: Tensor, height: int, width: int) -> Tensor:
    """The images at this size, with 0 right and below."""
    return F.pad(images, (0, width - images.shape[-1], 0, height - images.shape[-2]))


def _resize(maps: Tensor, size: Size, align_corners: bool) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=align_corners)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for every module, and afterwards each one's own mode, frozen norms included."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
