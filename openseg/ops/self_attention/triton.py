# SPDX-License-Identifier: MIT
"""Triton kernels of attention between the pixels of a map, or of each of its groups of pixels.

`interlaced_attention` launches them too: where the pixels of a group lie is computed, nothing is
permuted. Between the passes lie float32 [2, B, H · W]: the softmax's greatest scaled scores and
inverse sums. Backward without atomics: where the key is the query, one kernel has all that belongs
to a row; else one has the rows of the query and one those of key and value.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from openseg.ops import _triton
from openseg.ops._layout import empty_map
from openseg.ops._triton import launch, power_of_two, precision, strides, walkable
from openseg.ops._triton_kernels import load_block, load_rows, store_rows


class Groups(NamedTuple):
    """Where the pixels of groups of one size lie in a map; `whole_map` is one group of all."""

    sets: int
    first: int  # pixel of the map
    tokens: int  # pixels of a group
    columns: int  # the token t is in its row t // columns
    row_step: int
    column_step: int
    across: int  # the group g is in row g // across of groups
    group_row_step: int
    group_step: int


def whole_map(pixels: int) -> Groups:
    return Groups(1, 0, pixels, pixels, 0, 1, 1, 0, 0)


@triton.jit
def _pixels(tokens, first, columns, row_step, column_step):
    return first + (tokens // columns) * row_step + (tokens % columns) * column_step


@triton.jit
def _place(
    first, tokens, columns, row_step, column_step, across, group_row_step, group_step,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """(first pixel of a program's group, the tokens of its block, their pixels)."""
    blocks = tl.cdiv(tokens, BLOCK)
    group = tl.program_id(0) // blocks
    first += (group // across) * group_row_step + (group % across) * group_step
    own = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    return first, own, _pixels(own, first, columns, row_step, column_step)


@triton.jit
def _softmax(scores, statistics, pixels, inside, step, AXIS: tl.constexpr):
    """Weights of scaled scores; AXIS is the one along which the keys lie."""
    greatest = tl.load(statistics + pixels, mask=inside, other=0.0)
    inverse = tl.load(statistics + step + pixels, mask=inside, other=0.0)
    greatest, inverse = tl.expand_dims(greatest, AXIS), tl.expand_dims(inverse, AXIS)
    return tl.exp(scores - greatest) * inverse


@triton.jit
def attention_kernel(
    query, key, value, out, statistics, pixels, channels, value_channels, scale,
    query_image, query_pixel, query_channel, key_image, key_pixel, key_channel,
    value_image, value_pixel, value_channel, out_image, out_pixel, out_channel,
    first, tokens, columns, row_step, column_step, across, group_row_step, group_step,
    BLOCK: tl.constexpr, OTHERS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    image, c, cv = tl.program_id(1).to(tl.int64), tl.arange(0, D), tl.arange(0, DV)
    first, t, rows = _place(
        first, tokens, columns, row_step, column_step, across, group_row_step, group_step, BLOCK
    )
    key += image * key_image
    value += image * value_image
    q = load_rows(
        query + image * query_image, rows, t < tokens, c, query_pixel, query_channel, channels
    )
    greatest = tl.full((BLOCK,), -float("inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    context = tl.zeros((BLOCK, DV), tl.float32)
    for start in range(0, tokens, OTHERS):
        s = start + tl.arange(0, OTHERS)
        at = _pixels(s, first, columns, row_step, column_step)
        k = load_rows(key, at, s < tokens, c, key_pixel, key_channel, channels)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where((s < tokens)[None, :], scores, -float("inf"))
        higher = tl.maximum(greatest, tl.max(scores, 1))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        weights = tl.exp(scores - shift[:, None])
        shrink = tl.exp(greatest - shift)
        total = total * shrink + tl.sum(weights, 1)
        v = load_rows(value, at, s < tokens, cv, value_pixel, value_channel, value_channels)
        context = tl.dot(
            weights.to(v.dtype), v, context * shrink[:, None], input_precision=PRECISION
        )
        greatest = higher
    place = statistics + image * pixels + rows
    tl.store(place, greatest, mask=t < tokens)
    store_rows(
        out + image * out_image, context / total[:, None], rows, t < tokens, cv, out_pixel,
        out_channel, value_channels,
    )  # fmt: skip
    tl.store(place + tl.num_programs(1).to(tl.int64) * pixels, 1.0 / total, mask=t < tokens)


@triton.jit
def attention_delta_kernel(
    grad, out, delta, pixels, channels, grad_image, grad_pixel, grad_channel,
    out_image, out_pixel, out_channel, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Σ_c out · its gradient of each pixel: what the softmax's gradient subtracts."""
    image = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    grad += image * grad_image
    out += image * out_image
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        g = load_block(grad, n, c, grad_pixel, grad_channel, pixels, channels).to(tl.float32)
        o = load_block(out, n, c, out_pixel, out_channel, pixels, channels).to(tl.float32)
        total += tl.sum(g * o, 1)
    tl.store(delta + image * pixels + n, total, mask=n < pixels)


@triton.jit
def attention_query_kernel(
    grad, query, key, value, statistics, delta, grad_query, pixels, channels, value_channels, scale,
    grad_image, grad_pixel, grad_channel, query_image, query_pixel, query_channel,
    key_image, key_pixel, key_channel, value_image, value_pixel, value_channel,
    out_image, out_pixel, out_channel,
    first, tokens, columns, row_step, column_step, across, group_row_step, group_step,
    BLOCK: tl.constexpr, OTHERS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    image, c, cv = tl.program_id(1).to(tl.int64), tl.arange(0, D), tl.arange(0, DV)
    first, t, rows = _place(
        first, tokens, columns, row_step, column_step, across, group_row_step, group_step, BLOCK
    )
    key += image * key_image
    value += image * value_image
    q = load_rows(
        query + image * query_image, rows, t < tokens, c, query_pixel, query_channel, channels
    )
    g = load_rows(
        grad + image * grad_image, rows, t < tokens, cv, grad_pixel, grad_channel, value_channels
    )
    step = tl.num_programs(1).to(tl.int64) * pixels
    known = tl.load(delta + image * pixels + rows, mask=t < tokens, other=0.0)
    total = tl.zeros((BLOCK, D), tl.float32)
    for start in range(0, tokens, OTHERS):
        s = start + tl.arange(0, OTHERS)
        at = _pixels(s, first, columns, row_step, column_step)
        k = load_rows(key, at, s < tokens, c, key_pixel, key_channel, channels)
        v = load_rows(value, at, s < tokens, cv, value_pixel, value_channel, value_channels)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        scores = tl.where((s < tokens)[None, :], scores, -float("inf"))
        weights = _softmax(scores, statistics + image * pixels, rows, t < tokens, step, 1)
        grad_scores = weights * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - known[:, None])
        total = tl.dot(grad_scores.to(k.dtype), k, total, input_precision=PRECISION)
    store_rows(
        grad_query + image * out_image, total * scale, rows, t < tokens, c, out_pixel, out_channel,
        channels,
    )  # fmt: skip


@triton.jit
def attention_key_value_kernel(
    grad, query, key, value, statistics, delta, grad_key, grad_value, pixels, channels,
    value_channels, scale, grad_image, grad_pixel, grad_channel,
    query_image, query_pixel, query_channel, key_image, key_pixel, key_channel,
    value_image, value_pixel, value_channel, out_image, out_pixel, out_channel,
    out_value_image, out_value_pixel, out_value_channel,
    first, tokens, columns, row_step, column_step, across, group_row_step, group_step,
    BLOCK: tl.constexpr, OTHERS: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    SHARED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values; SHARED: of the rows of a query that is the key."""
    image, c, cv = tl.program_id(1).to(tl.int64), tl.arange(0, D), tl.arange(0, DV)
    first, t, rows = _place(
        first, tokens, columns, row_step, column_step, across, group_row_step, group_step, BLOCK
    )
    grad += image * grad_image
    query += image * query_image
    statistics += image * pixels
    step = tl.num_programs(1).to(tl.int64) * pixels
    delta += image * pixels
    k = load_rows(key + image * key_image, rows, t < tokens, c, key_pixel, key_channel, channels)
    v = load_rows(
        value + image * value_image, rows, t < tokens, cv, value_pixel, value_channel,
        value_channels,
    )  # fmt: skip
    if SHARED:
        own_grad = load_rows(grad, rows, t < tokens, cv, grad_pixel, grad_channel, value_channels)
        own_delta = tl.load(delta + rows, mask=t < tokens, other=0.0)
    total = tl.zeros((BLOCK, D), tl.float32)
    value_total = tl.zeros((BLOCK, DV), tl.float32)
    for start in range(0, tokens, OTHERS):
        s = start + tl.arange(0, OTHERS)
        at = _pixels(s, first, columns, row_step, column_step)
        q = load_rows(query, at, s < tokens, c, query_pixel, query_channel, channels)
        g = load_rows(grad, at, s < tokens, cv, grad_pixel, grad_channel, value_channels)
        known = tl.load(delta + at, mask=s < tokens, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
        scores = tl.where((s < tokens)[None, :], scores, -float("inf"))
        weights = _softmax(scores, statistics, at, s < tokens, step, 0)
        value_total = tl.dot(weights.to(g.dtype), g, value_total, input_precision=PRECISION)
        grad_scores = weights * (tl.dot(v, tl.trans(g), input_precision=PRECISION) - known[None, :])
        if SHARED:
            others = load_rows(
                value + image * value_image, at, s < tokens, cv, value_pixel, value_channel,
                value_channels,
            )  # fmt: skip
            grad_weights = tl.dot(own_grad, tl.trans(others), input_precision=PRECISION)
            own_weights = _softmax(scores, statistics, rows, t < tokens, step, 1)
            grad_scores += own_weights * (grad_weights - own_delta[:, None])
        total = tl.dot(grad_scores.to(q.dtype), q, total, input_precision=PRECISION)
    store_rows(
        grad_key + image * out_image, total * scale, rows, t < tokens, c, out_pixel, out_channel,
        channels,
    )  # fmt: skip
    store_rows(
        grad_value + image * out_value_image, value_total, rows, t < tokens, cv, out_value_pixel,
        out_value_channel, value_channels,
    )  # fmt: skip


def attention(
    query: Tensor, key: Tensor | None, value: Tensor, scale: float, allow_tf32: bool,
    groups: list[Groups],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The context [B, Dv, H, W] within each group, and the statistics [2, B, H · W]."""
    images, channels, height, width = query.shape
    value_channels, pixels = value.shape[1], height * width
    out = empty_map(query, value_channels)
    statistics = query.new_empty((2, images, pixels), dtype=torch.float32)
    if images * pixels == 0:
        return out, statistics
    query, value = _rows(query), _rows(value)
    key = query if key is None else _rows(key)
    d, dv = power_of_two(channels), power_of_two(value_channels)
    # Hopper's products of 128 rows have their operands in shared memory
    hopper = _triton.shared_memory(query) > 200 << 10
    times = 2 if d <= 256 and (hopper or query.element_size() == 4) else 1
    sums = dv if _vectors(query, value) else max(d, dv)
    block = _block(query, value, d + dv, sums, times * d if hopper else 0)
    for part in groups:
        rows = min(times * block, power_of_two(part.tokens))
        launch(
            attention_kernel, _grid(rows, part, images),
            query, key, value, out, statistics, pixels, channels, value_channels, scale,
            *strides(query), *strides(key), *strides(value), *strides(out), *part[1:],
            OTHERS=block, **_options(attention_kernel, query, value, rows, allow_tf32),
        )  # fmt: skip
    return out, statistics


def attention_backward(
    grad: Tensor, query: Tensor, key: Tensor | None, value: Tensor, out: Tensor, statistics: Tensor,
    scale: float, allow_tf32: bool, groups: list[Groups],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of query, key (empty without one, then that of the query is of both) and value."""
    images, channels, height, width = query.shape
    value_channels, pixels = value.shape[1], height * width
    d, dv = power_of_two(channels), power_of_two(value_channels)
    if key is None and query.element_size() == 4 and d + dv > 512:  # six tiles find no room
        grads = attention_backward(
            grad, query, query, value, out, statistics, scale, allow_tf32, groups
        )
        return grads[0] + grads[1], query.new_empty(0), grads[2]
    grad_query, grad_value = empty_map(query, channels), empty_map(value, value_channels)
    grad_key = query.new_empty(0) if key is None else empty_map(key, channels)
    if images * pixels == 0:
        return grad_query, grad_key, grad_value
    grad, query, value, out = (_rows(t) for t in (grad, query, value, out))
    other = query if key is None else _rows(key)
    delta = torch.empty_like(statistics[0])
    launch(
        attention_delta_kernel, (triton.cdiv(pixels, 64), images), grad, out, delta, pixels,
        value_channels, *strides(grad), *strides(out), BLOCK=64, BLOCK_C=32,
    )  # fmt: skip
    sizes = pixels, channels, value_channels, scale
    places = *strides(grad), *strides(query), *strides(other), *strides(value)
    most, width = (32, d + 2 * dv) if key is None else (64, d + dv)
    others = min(most, _block(query, value, width, d + dv))
    # tl.dot sums over 16 at least; rows may be fewer
    tight = 2 * others * (d + dv) * query.element_size() > _triton.shared_memory(query)
    block = others // 2 if tight else others
    own = grad_query if key is None else grad_key
    for part in groups:
        launch(
            attention_key_value_kernel, _grid(block, part, images),
            grad, query, other, value, statistics, delta, own, grad_value, *sizes, *places,
            *strides(own), *strides(grad_value), *part[1:], OTHERS=others, SHARED=key is None,
            **_options(attention_key_value_kernel, query, value, block, allow_tf32),
        )  # fmt: skip
        if key is not None:
            launch(
                attention_query_kernel, _grid(block, part, images),
                grad, query, other, value, statistics, delta, grad_query, *sizes, *places,
                *strides(grad_query), *part[1:], OTHERS=others,
                **_options(attention_query_kernel, query, value, block, allow_tf32),
            )  # fmt: skip
    return grad_query, grad_key, grad_value


def _rows(tensor: Tensor) -> Tensor:
    """The map with a pixel's channels side by side: a copy costs less than to gather it often."""
    tensor = walkable(tensor)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.stride(1) > 1 else tensor


def _block(query: Tensor, value: Tensor, width: int, sums: int, rows: int = 0) -> int:
    """Pixels of a block: two blocks of `width` channels lie in shared memory, sums in registers.

    So does one of `rows` channels, the same for all the others.
    """
    if query.element_size() == 4:
        return 16
    most = 64
    while most > 16 and (
        most * (2 * width + rows) * query.element_size() > 0.9 * _triton.shared_memory(query)
        or most * sums > (1 << 14 if _vectors(query, value) else 1 << 13)
    ):
        most //= 2
    return most


def _vectors(query: Tensor, value: Tensor) -> bool:
    """Whether channels are whole vectors; others come one by one, through registers."""
    return query.shape[1] % 16 == value.shape[1] % 16 == 0


def _options(
    kernel: Any, query: Tensor, value: Tensor, block: int, allow_tf32: bool
) -> dict[str, Any]:
    """What a kernel is compiled with: nothing is spilled then.

    With a second stage, maps come into shared memory past the registers. TF32 needs more of it, and
    AMD's GPUs have none for a second stage of 1024 floats.
    """
    d, dv = power_of_two(query.shape[1]), power_of_two(value.shape[1])
    wide, shared = query.element_size() == 4, _triton.shared_memory(query)
    room = d + dv <= 512 or shared > 128 << 10
    tight = wide and d + dv > 512 and shared <= 64 << 10
    tf32 = allow_tf32 and wide and room
    if kernel is attention_query_kernel:
        once = wide and block >= 16
    elif kernel is attention_key_value_kernel:
        once = tf32 or tight or not (wide or _vectors(query, value))
    else:
        once = tight or (tf32 and d + dv > 512)
    return {
        "BLOCK": block,
        "D": d,
        "DV": dv,
        "PRECISION": precision(tf32),
        "num_warps": 8 if block >= 16 else 4,
        "num_stages": 1 if once else 2,
    }


def _grid(block: int, groups: Groups, images: int) -> tuple[int, int]:
    """Groups may be many: only the first number of a grid may be above 65535."""
    return triton.cdiv(groups.tokens, block) * groups.sets, images


def self_attention(
    query: Tensor, key: Tensor | None, value: Tensor, scale: float, allow_tf32: bool = False
) -> tuple[Tensor, Tensor]:
    groups = [whole_map(query.shape[2] * query.shape[3])]
    return attention(query, key, value, scale, allow_tf32, groups)


def self_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor | None, value: Tensor, out: Tensor, statistics: Tensor,
    scale: float, allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    groups = [whole_map(query.shape[2] * query.shape[3])]
    return attention_backward(grad, query, key, value, out, statistics, scale, allow_tf32, groups)
