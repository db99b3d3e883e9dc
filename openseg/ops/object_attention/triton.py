# SPDX-License-Identifier: MIT
"""Triton kernels of `object_attention`: the scores of a block of pixels stay in registers.

The gradients of key and value are sums over pixels: parts of the map are summed by one program
each, and the parts in their order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from openseg.ops._layout import empty_map
from openseg.ops._triton import fits, launch, power_of_two, precision, split, strides, walkable
from openseg.ops._triton_kernels import load_block, product, store_block


@triton.jit
def _weights(
    query, key, n, k, pixels, regions, channels, scale, query_pixel, query_channel, key_region,
    key_channel, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The softmax [n, k] over all regions, and its log-sum-exp."""
    scores = product(
        query, key, n, k, channels, query_pixel, query_channel, key_channel, key_region,
        pixels, regions, BLOCK_C, PRECISION,
    )  # fmt: skip
    scores = tl.where((k < regions)[None, :], scores * scale, -float("inf"))
    greatest = tl.max(scores, 1)
    weights = tl.exp(scores - greatest[:, None])
    total = tl.sum(weights, 1)
    return weights / total[:, None], greatest + tl.log(total)


@triton.jit
def object_attention_kernel(
    query, key, value, out, pixels, regions, channels, value_channels, scale,
    query_image, query_pixel, query_channel, key_image, key_region, key_channel,
    value_image, value_region, value_channel, out_image, out_pixel, out_channel,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(1).to(tl.int64)
    n, k = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    weights, _ = _weights(
        query + image * query_image, key + image * key_image, n, k, pixels, regions, channels,
        scale, query_pixel, query_channel, key_region, key_channel, BLOCK_C, PRECISION,
    )  # fmt: skip
    weights = weights.to(value.dtype.element_ty)
    value += image * value_image
    for start in range(0, value_channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        values = load_block(value, k, c, value_region, value_channel, regions, value_channels)
        context = tl.dot(weights, values, input_precision=PRECISION)
        store_block(
            out + image * out_image, context, n, c, out_pixel, out_channel, pixels, value_channels
        )


@triton.jit
def object_attention_query_kernel(
    grad, query, key, value, grad_query, statistics, pixels, regions, channels, value_channels,
    scale, grad_image, grad_pixel, grad_channel, query_image, query_pixel, query_channel,
    key_image, key_region, key_channel, value_image, value_region, value_channel,
    out_image, out_pixel, out_channel,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of the query; log-sum-exp and Σ weight · its gradient for the other kernel."""
    image = tl.program_id(1).to(tl.int64)
    n, k = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    key += image * key_image
    weights, lse = _weights(
        query + image * query_image, key, n, k, pixels, regions, channels, scale,
        query_pixel, query_channel, key_region, key_channel, BLOCK_C, PRECISION,
    )  # fmt: skip
    grad_weights = product(
        grad + image * grad_image, value + image * value_image, n, k, value_channels,
        grad_pixel, grad_channel, value_channel, value_region, pixels, regions,
        BLOCK_C, PRECISION,
    )  # fmt: skip
    delta = tl.sum(weights * grad_weights, 1)
    grad_scores = (weights * (grad_weights - delta[:, None]) * scale).to(query.dtype.element_ty)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        keys = load_block(key, k, c, key_region, key_channel, regions, channels)
        block = tl.dot(grad_scores, keys, input_precision=PRECISION)
        store_block(
            grad_query + image * out_image, block, n, c, out_pixel, out_channel, pixels, channels
        )
    place = statistics + image * 2 * pixels + n
    tl.store(place, lse, mask=n < pixels)
    tl.store(place + pixels, delta, mask=n < pixels)


@triton.jit
def object_attention_regions_kernel(
    grad, query, key, value, statistics, key_parts, value_parts, images, pixels, regions,
    channels, value_channels, pixels_each, scale, grad_image, grad_pixel, grad_channel,
    query_image, query_pixel, query_channel, key_image, key_region, key_channel,
    value_image, value_region, value_channel, CHUNKS: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of some channels of some keys and values, summed over one part of the pixels."""
    first, image = tl.program_id(1) * pixels_each, tl.program_id(2).to(tl.int64)
    k = tl.program_id(0) // CHUNKS * BLOCK_K + tl.arange(0, BLOCK_K)
    chunk = tl.program_id(0) % CHUNKS * CHUNK + tl.arange(0, CHUNK)
    grad += image * grad_image
    query += image * query_image
    key += image * key_image
    value += image * value_image
    statistics += image * 2 * pixels
    grad_key = tl.zeros((BLOCK_K, CHUNK), tl.float32)
    grad_value = tl.zeros((BLOCK_K, CHUNK), tl.float32)
    for start in range(first, tl.minimum(first + pixels_each, pixels), BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        at = tl.minimum(n, pixels - 1)  # 0 for a pixel outside of the map times inf would be NaN
        scores = product(
            key, query, k, at, channels, key_region, key_channel, query_channel, query_pixel,
            regions, pixels, BLOCK_C, PRECISION,
        )  # fmt: skip
        grad_weights = product(
            value, grad, k, at, value_channels, value_region, value_channel, grad_channel,
            grad_pixel, regions, pixels, BLOCK_C, PRECISION,
        )  # fmt: skip
        # a pixel outside of the map has no weight
        lse = tl.load(statistics + n, mask=n < pixels, other=float("inf"))
        delta = tl.load(statistics + pixels + n, mask=n < pixels, other=0.0)
        weights = tl.exp(scores * scale - lse[None, :])
        grad_scores = weights * (grad_weights - delta[None, :]) * scale
        g = load_block(grad, n, chunk, grad_pixel, grad_channel, pixels, value_channels)
        q = load_block(query, n, chunk, query_pixel, query_channel, pixels, channels)
        grad_value = tl.dot(weights.to(g.dtype), g, grad_value, input_precision=PRECISION)
        grad_key = tl.dot(grad_scores.to(q.dtype), q, grad_key, input_precision=PRECISION)
    row = tl.program_id(1) * images + image
    store_block(
        key_parts + row * regions * channels, grad_key, k, chunk, channels, 1, regions, channels
    )
    store_block(
        value_parts + row * regions * value_channels, grad_value, k, chunk, value_channels, 1,
        regions, value_channels,
    )  # fmt: skip


def object_attention(
    query: Tensor, key: Tensor, value: Tensor, scale: float, allow_tf32: bool = False
) -> Tensor:
    images, channels, height, width = query.shape
    regions, value_channels = value.shape[1:]
    out, query = empty_map(query, value_channels), walkable(query)
    if out.numel() == 0:
        return out
    block_n, options = _options(query, regions, allow_tf32)
    launch(
        object_attention_kernel, (triton.cdiv(height * width, block_n), images),
        query, key, value, out, height * width, regions, channels, value_channels, scale,
        *strides(query), *key.stride(), *value.stride(), *strides(out), BLOCK_N=block_n, **options,
    )  # fmt: skip
    return out


def object_attention_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    images, channels, height, width = query.shape
    pixels, (regions, value_channels) = height * width, value.shape[1:]
    grad_query = empty_map(query, channels)
    if images * pixels == 0:
        return grad_query, key.new_zeros(key.shape), value.new_zeros(value.shape)
    grad, query = walkable(grad), walkable(query)
    statistics = query.new_empty((images, 2, pixels), dtype=torch.float32)
    sizes = pixels, regions, channels, value_channels
    places = *strides(grad), *strides(query), *key.stride(), *value.stride()
    block_n, options = _options(query, regions, allow_tf32)
    launch(
        object_attention_query_kernel, (triton.cdiv(pixels, block_n), images),
        grad, query, key, value, grad_query, statistics, *sizes, scale, *places,
        *strides(grad_query), BLOCK_N=block_n, **options,
    )  # fmt: skip
    widest = max(channels, value_channels)
    chunk = power_of_two(widest, most=256 if fits(query) and fits(grad) else 64)
    chunks = triton.cdiv(widest, chunk)
    block_k = power_of_two(regions, most=32)
    programs = chunks * triton.cdiv(regions, block_k)
    parts, pixels_each = split(pixels, 64, programs * images)
    key_parts = query.new_empty((parts, *key.shape), dtype=torch.float32)
    value_parts = query.new_empty((parts, *value.shape), dtype=torch.float32)
    launch(
        object_attention_regions_kernel, (programs, parts, images),
        grad, query, key, value, statistics, key_parts, value_parts, images, *sizes, pixels_each,
        scale, *places, CHUNKS=chunks, CHUNK=chunk, BLOCK_N=64,
        **{**options, "BLOCK_K": block_k, "num_warps": 8},
    )  # fmt: skip
    return grad_query, key_parts.sum(0).to(key.dtype), value_parts.sum(0).to(value.dtype)


def _options(query: Tensor, regions: int, allow_tf32: bool) -> tuple[int, dict]:
    """Pixels of a block, and the options of kernels that hold their scores of all regions."""
    half, block_k = query.element_size() == 2, power_of_two(regions)
    options = {
        "BLOCK_K": block_k,
        "BLOCK_C": 64 if half else 16,
        "PRECISION": precision(allow_tf32),
        "num_warps": 4 if block_k <= 64 else 8,
        "num_stages": 2 if half else 3,
    }
    return power_of_two((8192 if half else 4096) // block_k, most=64), options
