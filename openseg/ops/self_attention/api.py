# SPDX-License-Identifier: MIT
"""`self_attention`: the pixels of a map attend to all pixels of it."""

from typing import Any

import torch
from torch import Tensor

from openseg.ops import _backend
from openseg.ops.self_attention import autograd, fastest, reference

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MOST_CHANNELS_ON_GPU = 512


def self_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Give each pixel the average of all values under its softmax over the pixels.

    `out[b, :, n] = Σ_m softmax_m(scale · query[b, :, n] · key[b, :, m]) · value[b, :, m]` (Yuan,
    Wang: OCNet, 2018, equation 1), with one head. `key` may be `query` itself, which saves work.

    On NVIDIA GPUs "auto" may take the forward pass of PyTorch's flash or cuDNN attention: where
    `torch.backends.cudnn.benchmark` is on and deterministic algorithms are not asked for, the first
    call of its kind times them and the log tells, at level info, which one was the fastest.

    Args:
        query, key: [B, D, H, W].
        value: [B, Dv, H, W].
        scale: factor on the scores; None is D ** -0.5.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        [B, Dv, H, W] in the dtype of the value and the layout of the query. Under autocast all
        three are cast to its dtype.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_attention_maps(query, key, value)
    scale = _backend.scale_of(scale, query.shape[1])
    query, key, value = cast_attention_maps(query, key, value)
    obstacles = attention_obstacles(autograd.FORWARD["cpp"], query, key, value)
    chosen = _backend.choose("self_attention", backend, obstacles)
    if chosen == "reference":
        return reference.self_attention(query, key, value, scale)
    other = None if key is query else key
    kernels = fastest.forward(chosen, backend, query), autograd.BACKWARD[chosen]
    options = scale, _backend.allows_tf32()
    return autograd.PixelAttention.apply(query, other, value, kernels, options)


def cast_attention_maps(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    """The three in autocast's dtype, or as they are; a key that is the query stays it."""
    cast = query.to(_backend.autocast_dtype(query))
    other = cast if key is query else key.to(_backend.autocast_dtype(key))
    return cast, other, value.to(_backend.autocast_dtype(value))


def attention_obstacles(
    kernel: Any, query: Tensor, key: Tensor, value: Tensor
) -> dict[str, str | None]:
    """What stands in the way of each backend of the attention between pixels."""
    mixed, many = _backend.mixed_obstacle(query, key, value), None
    if max(query.shape[1], value.shape[1]) > _MOST_CHANNELS_ON_GPU:
        many = (
            f"its blocks hold {_MOST_CHANNELS_ON_GPU} channels at most, "
            f"got {query.shape[1]} and {value.shape[1]}"
        )
    return {
        "cuda": _backend.cuda_obstacle(kernel, query, _KERNEL_DTYPES) or mixed or many,
        "triton": _backend.triton_obstacle(query, _KERNEL_DTYPES) or mixed or many,
        "cpp": _backend.cpp_obstacle(kernel, query, _KERNEL_DTYPES) or mixed,
        "reference": None,
    }


def check_attention_maps(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise ValueError unless the three are maps of one batch and size, query and key of one D."""
    shapes = f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
    if query.dim() != 4 or key.dim() != 4 or value.dim() != 4:
        raise ValueError(
            f"query and key must be [B, D, H, W] and value [B, Dv, H, W], got shapes {shapes}"
        )
    if (
        query.shape != key.shape
        or value.shape[0] != key.shape[0]
        or (value.shape[2:] != key.shape[2:])
    ):
        raise ValueError(
            "query, key and value must agree in batch and size, query and key in channels, "
            f"got shapes {shapes}"
        )
    if 0 in (query.shape[1], value.shape[1]):
        raise ValueError(f"query, key and value must have channels, got shapes {shapes}")
