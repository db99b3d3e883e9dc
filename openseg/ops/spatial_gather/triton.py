# SPDX-License-Identifier: MIT
"""Triton kernels of `spatial_gather`: parts of the map have a softmax each, merged in their order.

The statistics between the passes are float32 [B, 2, K]: greatest scaled logit, and the inverse of
the sum of exponentials.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from openseg.ops._layout import empty_map
from openseg.ops._triton import fits, launch, power_of_two, precision, split, strides, walkable
from openseg.ops._triton_kernels import load_block, store_block


@triton.jit
def spatial_gather_part_kernel(
    features, logits, sums, statistics, images, pixels, regions, channels, pixels_each, scale,
    features_image, features_pixel, features_channel, logits_image, logits_pixel, logits_channel,
    CHUNKS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Σ exp(scaled logit - greatest of the part) · feature, and the part's statistics."""
    part, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    k = tl.program_id(0) // CHUNKS * BLOCK_K + tl.arange(0, BLOCK_K)
    c = tl.program_id(0) % CHUNKS * BLOCK_C + tl.arange(0, BLOCK_C)
    first = part * pixels_each
    last = tl.minimum(first + pixels_each, pixels)
    logits += image * logits_image
    features += image * features_image
    greatest = tl.full((BLOCK_K,), -float("inf"), tl.float32)
    for start in range(first, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        scores = load_block(logits, k, n, logits_channel, logits_pixel, regions, pixels)
        scores = tl.where((n < last)[None, :], scores.to(tl.float32) * scale, -float("inf"))
        greatest = tl.maximum(greatest, tl.max(scores, 1))
    shift = tl.where(greatest == -float("inf"), 0.0, greatest)
    total = tl.zeros((BLOCK_K,), tl.float32)
    sum_ = tl.zeros((BLOCK_K, BLOCK_C), tl.float32)
    for start in range(first, last, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        scores = load_block(logits, k, n, logits_channel, logits_pixel, regions, pixels)
        scores = tl.where((n < last)[None, :], scores.to(tl.float32) * scale, -float("inf"))
        weights = tl.exp(scores - shift[:, None])
        total += tl.sum(weights, 1)
        x = load_block(features, n, c, features_pixel, features_channel, pixels, channels)
        sum_ = tl.dot(weights.to(x.dtype), x, sum_, input_precision=PRECISION)
    row = part * images + image
    store_block(sums + row * regions * channels, sum_, k, c, channels, 1, regions, channels)
    if tl.program_id(0) % CHUNKS == 0:
        place = statistics + row * 2 * regions + k
        tl.store(place, greatest, mask=k < regions)
        tl.store(place + regions, total, mask=k < regions)


@triton.jit
def spatial_gather_merge_kernel(
    sums, part_statistics, out, statistics, parts, images, regions, channels, BLOCK_C: tl.constexpr
):
    """One region of one image: its parts, weighted by exp(their greatest - the greatest)."""
    image, k = tl.program_id(0) // regions, tl.program_id(0) % regions
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    place = part_statistics + image * 2 * regions + k
    step = images * 2 * regions
    greatest = -float("inf")
    for part in range(parts):
        greatest = tl.maximum(greatest, tl.load(place + part * step))
    total = 0.0
    sum_ = tl.zeros((BLOCK_C,), tl.float32)
    for part in range(parts):
        weight = tl.exp(tl.load(place + part * step) - greatest)
        total += weight * tl.load(place + part * step + regions)
        row = (part * images + image).to(tl.int64) * regions + k
        sum_ += weight * tl.load(sums + row * channels + c, mask=c < channels, other=0.0)
    row = (image * regions + k).to(tl.int64)
    tl.store(out + row * channels + c, sum_ / total, mask=c < channels)
    if tl.program_id(1) == 0:
        tl.store(statistics + image * 2 * regions + k, greatest)
        tl.store(statistics + (image * 2 + 1) * regions + k, 1.0 / total)


@triton.jit
def spatial_gather_backward_kernel(
    grad, features, logits, statistics, delta, grad_features, grad_logits,
    pixels, regions, channels, scale, grad_image, grad_region, grad_channel,
    features_image, features_pixel, features_channel, logits_image, logits_pixel, logits_channel,
    out_image, out_pixel, out_channel, out_logits_image, out_logits_pixel, out_logits_channel,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Both gradients of a block of pixels; `delta` [B, K] is Σ_c region · its gradient."""
    image = tl.program_id(1).to(tl.int64)
    n, k = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_K)
    inside = k < regions
    greatest = tl.load(statistics + image * 2 * regions + k, mask=inside, other=0.0)
    inverse = tl.load(statistics + (image * 2 + 1) * regions + k, mask=inside, other=0.0)
    known = tl.load(delta + image * regions + k, mask=inside, other=0.0)
    logits += image * logits_image
    scores = load_block(logits, n, k, logits_pixel, logits_channel, pixels, regions)
    scores = scores.to(tl.float32) * scale
    weights = tl.exp(scores - greatest[None, :]) * inverse[None, :]
    grad_weights = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        x = load_block(
            features + image * features_image, n, c, features_pixel, features_channel, pixels,
            channels,
        )  # fmt: skip
        g = load_block(
            grad + image * grad_image, k, c, grad_region, grad_channel, regions, channels
        )
        grad_weights = tl.dot(x, tl.trans(g), grad_weights, input_precision=PRECISION)
        grad_x = tl.dot(weights.to(g.dtype), g, input_precision=PRECISION)
        store_block(
            grad_features + image * out_image, grad_x, n, c, out_pixel, out_channel, pixels,
            channels,
        )  # fmt: skip
    store_block(
        grad_logits + image * out_logits_image, weights * (grad_weights - known[None, :]) * scale,
        n, k, out_logits_pixel, out_logits_channel, pixels, regions,
    )  # fmt: skip


def spatial_gather(
    features: Tensor, logits: Tensor, scale: float, allow_tf32: bool = False
) -> tuple[Tensor, Tensor]:
    images, channels, height, width = features.shape
    pixels, regions = height * width, logits.shape[1]
    out = features.new_empty((images, regions, channels), dtype=torch.float32)
    statistics = features.new_empty((images, 2, regions), dtype=torch.float32)
    if images * regions == 0:
        return out, statistics
    features, logits = walkable(features), walkable(logits)
    roomy = fits(features) and fits(logits)
    block_k = power_of_two(regions, most=64 if roomy else 32)
    block_c = power_of_two(channels, most=128 if roomy else 64)
    chunks = triton.cdiv(channels, block_c)
    programs = chunks * triton.cdiv(regions, block_k)
    parts, pixels_each = split(pixels, 64, programs * images)
    sums = out.new_empty((parts, *out.shape))
    part_statistics = out.new_empty((parts, *statistics.shape))
    launch(
        spatial_gather_part_kernel, (programs, parts, images), features, logits, sums,
        part_statistics, images, pixels, regions, channels, pixels_each, scale,
        *strides(features), *strides(logits), CHUNKS=chunks, BLOCK_N=64 if roomy else 32,
        BLOCK_K=block_k, BLOCK_C=block_c, PRECISION=precision(allow_tf32), num_warps=4,
        num_stages=3,
    )  # fmt: skip
    launch(
        spatial_gather_merge_kernel, (images * regions, triton.cdiv(channels, 256)), sums,
        part_statistics, out, statistics, parts, images, regions, channels, BLOCK_C=256,
    )  # fmt: skip
    return out, statistics


def spatial_gather_backward(
    grad: Tensor,
    features: Tensor,
    logits: Tensor,
    regions: Tensor,
    statistics: Tensor,
    scale: float,
    allow_tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    grad_features = empty_map(features, features.shape[1])
    grad_logits = empty_map(logits, logits.shape[1])
    features, logits = walkable(features), walkable(logits)
    images, channels, height, width = features.shape
    if images == 0:
        return grad_features, grad_logits
    delta = (grad.float() * regions).sum(2)
    half, block_k = features.element_size() == 2, power_of_two(logits.shape[1])
    block_n = power_of_two((8192 if half else 1024) // block_k, most=64)
    launch(
        spatial_gather_backward_kernel, (triton.cdiv(height * width, block_n), images),
        grad, features, logits, statistics, delta, grad_features, grad_logits,
        height * width, logits.shape[1], channels, scale, *grad.stride(), *strides(features),
        *strides(logits), *strides(grad_features), *strides(grad_logits),
        BLOCK_N=block_n, BLOCK_K=block_k, BLOCK_C=64 if half else 32,
        PRECISION=precision(allow_tf32), num_warps=4 if block_k <= 64 else 8, num_stages=2,
    )  # fmt: skip
    return grad_features, grad_logits
