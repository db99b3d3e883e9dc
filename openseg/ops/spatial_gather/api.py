# SPDX-License-Identifier: MIT
"""`spatial_gather`: one feature vector for each soft region of a map."""

from collections.abc import Callable

import torch
from torch import Tensor

from openseg.ops import _backend
from openseg.ops.spatial_gather import autograd, reference

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def spatial_gather(
    features: Tensor, logits: Tensor, scale: float = 1.0, *, backend: str = "auto"
) -> Tensor:
    """Average the features under each region's softmax over the pixels of its image.

    `out[b, k] = Σ_n softmax_n(scale · logits[b, k, n]) · features[b, :, n]` (Yuan, Chen, Wang:
    OCR, ECCV 2020, equation 8).

    Args:
        features: [B, C, H, W].
        logits: [B, K, H, W], one map a region, at the size of the features.
        scale: factor on the logits.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        [B, K, C] in the dtype of the features. Under autocast the features are cast to its dtype;
        logits keep theirs, the softmax runs in float32 at least.

    Raises:
        ValueError: shapes that do not fit, or a map without pixels.
    """
    if features.dim() != 4 or logits.dim() != 4:
        raise ValueError(
            "features must be [B, C, H, W] and logits [B, K, H, W], got shapes "
            f"{tuple(features.shape)} and {tuple(logits.shape)}"
        )
    if features.shape[0] != logits.shape[0] or features.shape[2:] != logits.shape[2:]:
        raise ValueError(
            "features and logits must agree in batch and size: features are "
            f"{tuple(features.shape)}, logits {tuple(logits.shape)}; resize one to the other"
        )
    if 0 in features.shape[1:]:
        raise ValueError(
            f"features have no channels or pixels to gather: shape {tuple(features.shape)}"
        )
    scale = _backend.scale_of(scale, 1)
    features = features.to(_backend.autocast_dtype(features))
    chosen = _backend.choose("spatial_gather", backend, _obstacles(features, logits))
    if chosen == "reference":
        return reference.spatial_gather(features, logits, scale)
    return autograd.SpatialGather.apply(features, logits, scale, chosen)


def _obstacles(features: Tensor, logits: Tensor) -> dict[str, str | None]:
    def first(obstacle: Callable, *kernel: object) -> str | None:
        found = (obstacle(*kernel, t, _KERNEL_DTYPES) for t in (features, logits))
        return next(filter(None, found), None)

    apart = _backend.devices_obstacle(features, logits)
    many = apart or _backend.regions_obstacle(logits.shape[1])
    return {
        "cuda": first(_backend.cuda_obstacle, autograd.FORWARD["cuda"]) or many,
        "triton": first(_backend.triton_obstacle) or many,
        "cpp": first(_backend.cpp_obstacle, autograd.FORWARD["cpp"]) or apart,
        "reference": None,
    }
