# SPDX-License-Identifier: MIT
"""`upsample_cross_entropy`: cross entropy at label size for logits at feature size."""

import torch
from torch import Tensor

from openseg.ops import _backend
from openseg.ops.upsample_cross_entropy import autograd, reference


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    align_corners: bool = True,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Bilinear upsampling of the logits to the size of the target, then softmax cross entropy.

    Equal to `F.cross_entropy(F.interpolate(logits, target.shape[1:], mode="bilinear"), target)`,
    but a batch that is ignored altogether has the loss 0 and zero gradients, not NaN.

    Args:
        logits: [B, K, h, w], floating point.
        target: [B, H, W], uint8 or int64: classes 0 … K-1, or `ignore_index`.
        align_corners: of the upsampling; the published networks have True.
        weight: [K], a factor for each class. The mean divides by the sum of the weights of the
            valid pixels.
        ignore_index: label of the pixels without loss and gradient.
        label_smoothing: in [0, 1], the share of the uniform distribution in the target.
        reduction: "mean", or "none" for the loss of each pixel.
        backend: "auto", "cuda" or "reference".

    Returns:
        A scalar, or [B, H, W] for "none", in float32 (float64 for float64 logits).

    Raises:
        TypeError: a target that is neither uint8 nor int64.
        ValueError: shapes that do not fit, or an option out of range.
    """
    if logits.dim() != 4 or target.dim() != 3 or logits.shape[0] != target.shape[0]:
        raise ValueError(
            "logits must be [B, K, h, w] and target [B, H, W] with the same B, got shapes "
            f"{tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if target.dtype not in (torch.uint8, torch.int64):
        raise TypeError(f"target must be uint8 or int64, got {target.dtype}")
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise ValueError(
            f"weight must have one entry for each of the {logits.shape[1]} classes, "
            f"got shape {tuple(weight.shape)}"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if reduction not in ("mean", "none"):
        raise ValueError(f'reduction must be "mean" or "none", got {reduction!r}')
    obstacles = {
        "cuda": _backend.cuda_obstacle(autograd.FORWARD, logits, autograd.DTYPES),
        "reference": None,
    }
    chosen = _backend.choose("upsample_cross_entropy", backend, obstacles)
    run = (reference if chosen == "reference" else autograd).upsample_cross_entropy
    return run(logits, target, align_corners, weight, ignore_index, label_smoothing, reduction)
