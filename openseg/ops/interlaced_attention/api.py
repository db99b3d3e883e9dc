# SPDX-License-Identifier: MIT
"""`interlaced_attention`: one stage of interlaced sparse self-attention."""

from torch import Tensor

from openseg.ops import _backend
from openseg.ops.interlaced_attention import autograd, reference
from openseg.ops.self_attention.api import (
    attention_obstacles,
    cast_attention_maps,
    check_attention_maps,
)
from openseg.ops.self_attention.autograd import PixelAttention


def interlaced_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None = None,
    groups: tuple[int, int] = (8, 8),
    kind: str = "long",
    mask_pad: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """Self-attention within groups of pixels, one head (Huang, Yuan et al.: ISA, 2019).

    With `groups = (p, q)`, pixels of one "long" group have equal row modulo p and equal column
    modulo q: p · q groups that each span the map. Pixels of one "short" group lie in one block of
    p × q. A long stage and then a short one let each pixel reach every other.

    Args:
        query, key: [B, D, H, W]; without `mask_pad` H is a multiple of p and W of q. `key` may be
            `query` itself, which saves work.
        value: [B, Dv, H, W].
        scale: factor on the scores; None is D ** -0.5.
        groups: (p, q).
        kind: "long" or "short".
        mask_pad: take a map of any size, as if it lay centred (the smaller half above and left) in
            one whose size is a multiple and the pixels around it did not exist.
        backend: "auto", "cuda", "triton", "cpp" or "reference".

    Returns:
        [B, Dv, H, W] in the dtype of the value and the layout of the query. Under autocast all
        three are cast to its dtype.

    Raises:
        ValueError: shapes that do not fit, or an unknown kind.
    """
    check_attention_maps(query, key, value)
    if kind not in ("long", "short"):
        raise ValueError(f'kind must be "long" or "short", got {kind!r}')
    if min(groups) < 1:
        raise ValueError(f"groups must be (p, q), 1 at least, got {groups}")
    if not mask_pad and (query.shape[2] % groups[0] or query.shape[3] % groups[1]):
        raise ValueError(
            f"the map's size must be a multiple of groups {groups}, got "
            f"{tuple(query.shape[2:])}; pad the map first, or give mask_pad=True"
        )
    scale = _backend.scale_of(scale, query.shape[1])
    query, key, value = cast_attention_maps(query, key, value)
    obstacles = attention_obstacles(autograd.FORWARD["cpp"], query, key, value)
    chosen = _backend.choose("interlaced_attention", backend, obstacles)
    if chosen == "reference":
        return reference.interlaced_attention(query, key, value, scale, groups, kind, mask_pad)
    other = None if key is query else key
    kernels = autograd.FORWARD[chosen], autograd.BACKWARD[chosen]
    options = scale, list(groups), kind, _backend.allows_tf32()
    return PixelAttention.apply(query, other, value, kernels, options)
