# SPDX-License-Identifier: MIT
"""Cross entropy at label size for logits at feature size, without the [B, K, H, W] tensor.

In eager mode on a CPU a label out of range raises with its value. A compiled graph cannot read
values, and reading them from a GPU would stall it: there the same mistake is a RuntimeError.
"""

import torch
from torch import Tensor

from openseg.ops import _backend, _triton
from openseg.ops.upsample_cross_entropy import autograd, reference
from openseg.ops.upsample_cross_entropy.reference import Ohem

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    align_corners: bool = True,
    weight: Tensor | None = None,
    ignore_index: int = 255,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    ohem: Ohem | None = None,
    backend: str = "auto",
) -> Tensor:
    """Bilinear upsampling of the logits to the size of the target, then softmax cross entropy.

    Equal to `F.cross_entropy(F.interpolate(logits, target.shape[1:], mode="bilinear"), target)`,
    but a batch that is ignored altogether has the loss 0 and zero gradients, not NaN.

    Args:
        logits: [B, K, h, w], floating point, any strides.
        target: [B, H, W], uint8 or int64: classes 0 … K-1, or `ignore_index`.
        align_corners: of the upsampling; the published networks have True.
        weight: [K], a factor for each class. The mean divides by the sum of the weights of the
            valid pixels.
        ignore_index: label of the pixels without loss and gradient.
        label_smoothing: in [0, 1], the share of the uniform distribution in the target.
        reduction: "mean", "sum", or "none" for the loss of each pixel.
        ohem: count hard pixels alone; the others are then as if ignored.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        A scalar, or [B, H, W] for "none", in float32 (float64 for float64 logits).

    Raises:
        TypeError: a target that is neither uint8 nor int64.
        ValueError: shapes that do not fit, an option out of range, or a label out of range
            (RuntimeError in a compiled graph and on a GPU).
    """
    _check(logits, target, weight, label_smoothing, reduction, ohem)
    options = align_corners, ignore_index, label_smoothing, ohem, reduction
    weight = None if weight is None else weight.detach()
    chosen = _backend.choose("upsample_cross_entropy", backend, _obstacles(logits, target))
    if chosen != "reference":
        if chosen == "cpp" and logits.dtype == torch.float16:
            logits = logits.float()
        weight = None if weight is None else weight.float().contiguous()
        loss, invalid = autograd.UpsampleCrossEntropy.apply(
            logits, target.contiguous(), weight, *options, chosen
        )
    else:
        loss, invalid = reference.upsample_cross_entropy(logits, target, weight, *options)
    if torch.compiler.is_compiling() or target.device.type != "cpu":
        torch._assert_async(
            invalid[0] == 0, "upsample_cross_entropy: target has a label out of range"
        )
    else:
        _raise_if_invalid(invalid.tolist(), target, logits.shape[1], ignore_index)
    return loss


def _obstacles(logits: Tensor, target: Tensor) -> dict[str, str | None]:
    return {
        "cuda": _backend.cuda_obstacle(autograd.FORWARD["cuda"], logits, _KERNEL_DTYPES),
        "triton": _backend.triton_obstacle(logits, _KERNEL_DTYPES)
        or _triton.upsampling_obstacle(logits.shape[2:], target.shape[1:]),
        "cpp": _backend.cpp_obstacle(autograd.FORWARD["cpp"], logits, _KERNEL_DTYPES),
        "reference": None,
    }


def _check(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    label_smoothing: float,
    reduction: str,
    ohem: Ohem | None,
) -> None:
    if logits.dim() != 4 or target.dim() != 3 or logits.shape[0] != target.shape[0]:
        raise ValueError(
            "logits must be [B, K, h, w] and target [B, H, W] with the same B, got shapes "
            f"{tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if not logits.is_floating_point():
        raise TypeError(f"logits must be floating point, got {logits.dtype}")
    if target.dtype not in (torch.uint8, torch.int64):
        raise TypeError(f"target must be uint8 or int64, got {target.dtype}")
    if any(other.device != logits.device for other in (target, weight) if other is not None):
        raise ValueError(
            f"target and weight must be on the device of logits, {logits.device}, got a target on "
            f"{target.device}" + (f", a weight on {weight.device}" if weight is not None else "")
        )
    if 0 in (*logits.shape[1:], *target.shape[1:]):
        raise ValueError(
            "classes, heights and widths must be positive, got shapes "
            f"{tuple(logits.shape)} and {tuple(target.shape)}"
        )
    if weight is not None and weight.shape != logits.shape[1:2]:
        raise ValueError(
            f"weight must have one entry for each of the {logits.shape[1]} classes, "
            f"got shape {tuple(weight.shape)}"
        )
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing must be in [0, 1], got {label_smoothing}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'reduction must be "mean", "sum" or "none", got {reduction!r}')
    if ohem is None:
        return
    if ohem.variant not in ("openseg", "ocnet"):
        raise ValueError(f'ohem.variant must be "openseg" or "ocnet", got {ohem.variant!r}')
    if not 0.0 <= ohem.thresh <= 1.0 or ohem.min_kept < 0:
        raise ValueError(f"ohem needs thresh in [0, 1] and min_kept >= 0, got {ohem}")


def _raise_if_invalid(
    invalid: list[int], target: Tensor, num_classes: int, ignore_index: int
) -> None:
    count, position = map(int, invalid)
    if count > 0:
        value = int(target.reshape(-1)[position])
        raise ValueError(
            f"upsample_cross_entropy: target has the label {value} at element {position}, expected "
            f"0..{num_classes - 1} or {ignore_index} (ignored); {count} pixels are out of range"
        )
