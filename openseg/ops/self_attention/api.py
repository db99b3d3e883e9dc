# SPDX-License-Identifier: MIT
"""`self_attention`: the pixels of a map attend to all pixels of it."""

from torch import Tensor

from openseg.ops import _backend
from openseg.ops.self_attention import reference


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
    Wang: OCNet, 2018, equation 1), with one head. `key` may be `query` itself.

    Args:
        query, key: [B, D, H, W].
        value: [B, Dv, H, W].
        scale: factor on the scores; None is D ** -0.5.
        backend: "auto" or "reference".

    Returns:
        [B, Dv, H, W] in the dtype of the value.

    Raises:
        ValueError: shapes that do not fit.
    """
    check_attention_maps(query, key, value)
    if scale is None:
        scale = query.shape[1] ** -0.5
    _backend.choose("self_attention", backend, {"reference": None})
    return reference.self_attention(query, key, value, scale)


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
