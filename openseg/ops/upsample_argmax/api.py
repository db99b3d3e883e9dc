# SPDX-License-Identifier: MIT
"""Labels of a network's low-resolution logits at full size, without the [B, K, H, W] tensor."""

import torch
from torch import Tensor

from openseg.ops import _backend, _triton
from openseg.ops._kernels import registered
from openseg.ops.upsample_argmax import reference

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _fake(logits, size, align_corners, confidence):
    shape = (logits.shape[0], *size)
    few = logits.shape[1] <= reference.MOST_UINT8_CLASSES
    labels = logits.new_empty(shape, dtype=torch.uint8 if few else torch.int64)
    return labels, logits.new_empty(shape if confidence else (0,), dtype=torch.float32)


_KERNELS = registered(
    "upsample_argmax",
    "upsample_argmax(Tensor logits, SymInt[2] size, bool align_corners, bool confidence)"
    " -> (Tensor, Tensor)",
    _fake,
)


def upsample_argmax(
    logits: Tensor,
    size: tuple[int, int],
    confidence: bool = False,
    *,
    align_corners: bool = True,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The class with the greatest bilinearly upsampled logit at each pixel.

    Args:
        logits: [B, K, h, w], floating point, any strides. Half precision is interpolated in
            float32.
        size: (H, W) of the result, larger or smaller than (h, w).
        confidence: also return the softmax probability of the label.
        align_corners: as in `torch.nn.functional.interpolate`.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        labels [B, H, W], uint8 for K <= 256, else int64; the smallest index among equal values.
        With `confidence=True`, (labels, confidence [B, H, W] float32). Not differentiable.
    """
    if logits.ndim != 4 or not logits.is_floating_point() or 0 in logits.shape[1:]:
        raise ValueError(
            "upsample_argmax: logits must be floating point [B, K, h, w] with K, h, w >= 1, "
            f"got {logits.dtype} {tuple(logits.shape)}"
        )
    if len(size) != 2 or size[0] < 1 or size[1] < 1:
        raise ValueError(f"upsample_argmax: size must be (H, W), both positive, got {size}")
    obstacles = {
        "cuda": _backend.cuda_obstacle(_KERNELS["cuda"], logits, _KERNEL_DTYPES),
        "triton": _backend.triton_obstacle(logits, _KERNEL_DTYPES)
        or _triton.upsampling_obstacle(logits.shape[2:], size),
        "cpp": _backend.cpp_obstacle(_KERNELS["cpp"], logits, _KERNEL_DTYPES),
        "reference": None,
    }
    chosen = _backend.choose("upsample_argmax", backend, obstacles)
    run = _KERNELS.get(chosen, reference.upsample_argmax)
    labels, probability = run(logits.detach(), (size[0], size[1]), align_corners, confidence)
    return (labels, probability) if confidence else labels
