# SPDX-License-Identifier: MIT
"""`object_attention`: the pixels of a map attend to K region vectors."""

import torch
from torch import Tensor

from openseg.ops import _backend
from openseg.ops.object_attention import autograd, reference

_KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def object_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Give each pixel the average of the regions' values under its softmax over the regions.

    `out[b, :, n] = Σ_k softmax_k(scale · key[b, k] · query[b, :, n]) · value[b, k]` (Yuan, Chen,
    Wang: OCR, ECCV 2020, equations 9 and 10).

    Args:
        query: [B, D, H, W].
        key: [B, K, D].
        value: [B, K, Dv].
        scale: factor on the scores; None is D ** -0.5.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        [B, Dv, H, W] in the dtype of the value and the layout of the query. Under autocast all
        three are cast to its dtype.

    Raises:
        ValueError: shapes that do not fit, or no regions at all.
    """
    if query.dim() != 4 or key.dim() != 3 or value.dim() != 3:
        raise ValueError(
            "query must be [B, D, H, W], key [B, K, D] and value [B, K, Dv], got shapes "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    if key.shape[0] != query.shape[0] or key.shape[2] != query.shape[1]:
        raise ValueError(
            "query [B, D, H, W] and key [B, K, D] must agree in B and D, got shapes "
            f"{tuple(query.shape)} and {tuple(key.shape)}"
        )
    if value.shape[:2] != key.shape[:2]:
        raise ValueError(
            "key [B, K, D] and value [B, K, Dv] must agree in B and K, got shapes "
            f"{tuple(key.shape)} and {tuple(value.shape)}"
        )
    if 0 in (*key.shape[1:], value.shape[2]):
        raise ValueError(
            "key [B, K, D] and value [B, K, Dv] need K, D, Dv >= 1, got shapes "
            f"{tuple(key.shape)} and {tuple(value.shape)}"
        )
    scale = _backend.scale_of(scale, query.shape[1])
    query, key, value = (t.to(_backend.autocast_dtype(t)) for t in (query, key, value))
    chosen = _backend.choose("object_attention", backend, _obstacles(query, key, value))
    if chosen == "reference":
        return reference.object_attention(query, key, value, scale)
    return autograd.ObjectAttention.apply(query, key, value, scale, chosen)


def _obstacles(query: Tensor, key: Tensor, value: Tensor) -> dict[str, str | None]:
    mixed = _backend.mixed_obstacle(query, key, value)
    many, forward = _backend.regions_obstacle(key.shape[1]), autograd.FORWARD["cpp"]
    return {
        "cuda": _backend.cuda_obstacle(forward, query, _KERNEL_DTYPES) or mixed or many,
        "triton": _backend.triton_obstacle(query, _KERNEL_DTYPES) or mixed or many,
        "cpp": _backend.cpp_obstacle(forward, query, _KERNEL_DTYPES) or mixed,
        "reference": None,
    }
