# SPDX-License-Identifier: MIT
"""Triton kernels of `inplace_abn`: sums over parts of the map, then one pass that applies them.

A small kernel between the two puts what a channel needs into coefficients, in float64; the parts
are added there too, in an order of their own.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from openseg.ops._layout import empty_map
from openseg.ops._triton import launch, power_of_two, split, strides, walkable

_SUMMING_WARPS = 8  # with fewer, registers hardly suffice for the sums of a block
_FEW = 8  # channels of a program that takes all parts of them
# the lowest output of ELU over its alpha, above -1, which numbers of few digits reach
_LOWEST_ELU = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@triton.jit
def _block(index, pixels, BLOCK: tl.constexpr):
    """The image of a block, and its pixels: of one image, so they are known to be neighbours."""
    blocks = tl.cdiv(pixels, BLOCK)
    return index // blocks, index % blocks * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _places(image, n, c, image_stride, pixel_stride, channel_stride):
    start = image.to(tl.int64) * image_stride
    pixels = n.to(tl.int64)[:, None] * pixel_stride
    return start + pixels + c.to(tl.int64)[None, :] * channel_stride


@triton.jit
def _row(matrix, row, c, channels):
    """What is not a channel is 1 in all rows: nothing is divided by 0."""
    return tl.load(matrix + row * channels + c, mask=c < channels, other=1.0)


@triton.jit
def _four_rows(matrix, c, channels):
    first, second = _row(matrix, 0, c, channels), _row(matrix, 1, c, channels)
    return first, second, _row(matrix, 2, c, channels), _row(matrix, 3, c, channels)


@triton.jit
def _store_rows(matrix, rows, c, channels):
    for row in tl.static_range(len(rows)):
        tl.store(matrix + row * channels + c, rows[row], mask=c < channels)


@triton.jit
def _normalising(mean, variance, affine, c, channels, EPS: tl.constexpr):
    """float32: y - bias is (x - first) · second + third; the fourth is the bias."""
    scale = _row(affine, 0, c, channels).to(tl.float64) / tl.sqrt(variance + EPS)
    rounded = mean.to(tl.float32)
    rest = (rounded.to(tl.float64) - mean) * scale
    return rounded, scale.to(tl.float32), rest.to(tl.float32), _row(affine, 1, c, channels)


@triton.jit
def inplace_abn_statistics_kernel(
    x, parts, blocks, pixels, channels, blocks_each, x_image, x_pixel, x_channel,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Number, mean and Σ (value - mean)² of the values of each part.

    By Welford's updates in each row of the block: sums of squares would cancel.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.program_id(1) * blocks_each
    image, n = _block(first, pixels, BLOCK)
    start_place = image.to(tl.int64) * x_image + tl.min(n, 0).to(tl.int64) * x_pixel
    shift = tl.load(x + start_place + c.to(tl.int64) * x_channel, mask=c < channels, other=0.0)
    shift = shift.to(tl.float32)
    count = tl.zeros((BLOCK,), tl.float32)
    mean = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    squares = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    for index in range(first, tl.minimum(first + blocks_each, blocks)):
        image, n = _block(index, pixels, BLOCK)
        inside = (n < pixels)[:, None] & (c < channels)[None, :]
        place = _places(image, n, c, x_image, x_pixel, x_channel)
        values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32) - shift[None, :]
        here = (n < pixels).to(tl.float32)
        count += here
        difference = tl.where(inside, values - mean, 0.0)
        mean += difference * (here / tl.maximum(count, 1.0))[:, None]
        squares += difference * tl.where(inside, values - mean, 0.0)
    total = tl.sum(count.to(tl.float64), 0)
    common = tl.sum(count[:, None] * mean, 0) / total.to(tl.float32)
    squares += count[:, None] * (mean - common[None, :]) * (mean - common[None, :])
    part = (
        tl.zeros((BLOCK_C,), tl.float64) + total,
        shift.to(tl.float64) + common,
        tl.sum(squares, 0).to(tl.float64),
    )
    _store_rows(parts + tl.program_id(1) * 3 * channels, part, c, channels)


@triton.jit
def inplace_abn_coefficients_kernel(
    parts, known, affine, statistics, coefficients, count, channels,
    EPS: tl.constexpr, PARTS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Mean, variance and number of all parts, or the known ones; with `affine`, what normalises."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    if known is None:
        part = tl.arange(0, PARTS)[:, None]
        inside = (part < count) & (c < channels)[None, :]
        place = parts + part * 3 * channels + c[None, :]
        numbers = tl.load(place, mask=inside, other=0.0)
        means = tl.load(place + channels, mask=inside, other=0.0)
        squares = tl.load(place + 2 * channels, mask=inside, other=0.0)
        number = tl.sum(numbers, 0)
        divisor = tl.maximum(number, 1.0)
        mean = tl.sum(numbers * means, 0) / divisor
        beside = means - mean[None, :]
        variance = tl.sum(squares + numbers * beside * beside, 0) / divisor
    else:
        mean, variance = _row(known, 0, c, channels), _row(known, 1, c, channels)
        number = _row(known, 2, c, channels)
    _store_rows(statistics, (mean, variance, number), c, channels)
    if affine is not None:
        normalising = _normalising(mean, variance, affine, c, channels, EPS)
        _store_rows(coefficients, normalising, c, channels)


@triton.jit
def inplace_abn_kernel(
    x, z, coefficients, pixels, channels, parameter, x_image, x_pixel, x_channel, z_image,
    z_pixel, z_channel, KIND: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    image, n = _block(tl.program_id(0), pixels, BLOCK)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (n < pixels)[:, None] & (c < channels)[None, :]
    place = _places(image, n, c, x_image, x_pixel, x_channel)
    values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    mean, scale, rest, bias = _four_rows(coefficients, c, channels)
    y = (values - mean[None, :]) * scale[None, :] + rest[None, :] + bias[None, :]
    if KIND == "relu":
        below = tl.zeros_like(y)
    elif KIND == "elu":  # by the series of exp(y) - 1 where y is small
        series = y * (1.0 + y * (0.5 + y * (1.0 / 6.0 + y * (1.0 / 24.0))))
        below = parameter * tl.where(y > -0.01, series, tl.exp(tl.minimum(y, 0.0)) - 1.0)
    else:
        below = y * parameter
    y = tl.where((y > 0) | (y != y), y, below)
    place = _places(image, n, c, z_image, z_pixel, z_channel)
    tl.store(z + place, y.to(z.dtype.element_ty), mask=inside)


@triton.jit
def _inverting(statistics, affine, c, channels):
    """float32, for `_recovered` of the output: the bias, the most y - bias can be, two zeros."""
    bias = _row(affine, 1, c, channels)
    most = tl.maximum(_row(statistics, 2, c, channels) - 1.0, 0.0).to(tl.float32)
    most = _row(affine, 0, c, channels) * tl.sqrt(most)
    return bias, most, tl.zeros_like(bias), tl.zeros_like(bias)


@triton.jit
def _recovered(
    grad, kept, recovering, parameter, lowest, KIND: tl.constexpr, FROM_INPUT: tl.constexpr
):  # fmt: skip
    """The gradient of y, and y - bias; where y is 0, the gradient is that of its negative side."""
    first, second = recovering[0][None, :], recovering[1][None, :]
    if FROM_INPUT:
        centered = (kept - first) * second + recovering[2][None, :]
        y = centered + recovering[3][None, :]
        if KIND == "relu":
            below = tl.zeros_like(grad)
        elif KIND == "elu":
            below = grad * (parameter * tl.exp(tl.minimum(y, 0.0)))
        else:
            below = grad * parameter
        return tl.where(y > 0, grad, below), centered
    inverse = kept / parameter
    if KIND == "elu":
        below = grad * (kept + parameter)
        # log1p by the series where its argument is small
        raised = tl.maximum(inverse, lowest - 1.0)
        series = raised * (1.0 - raised * (0.5 - raised * (1.0 / 3.0 - raised * 0.25)))
        inverse = tl.where(raised > -0.01, series, tl.log(1.0 + tl.minimum(raised, 0.0)))
        inverse = tl.where(kept != kept, kept, inverse)
    else:
        below = grad * parameter
    centered = tl.where(kept > 0, kept, inverse) - first
    # no normalised value is further out; NaN stays NaN
    centered = tl.where(centered > second, second, centered)
    centered = tl.where(centered < -second, -second, centered)
    return tl.where(kept > 0, grad, below), centered


@triton.jit
def inplace_abn_sums_kernel(
    grad, kept, statistics, affine, normalising, parts, blocks, pixels, channels, blocks_each,
    parameter, lowest, grad_image, grad_pixel, grad_channel, kept_image, kept_pixel, kept_channel,
    KIND: tl.constexpr, FROM_INPUT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums over a part of the gradient of y, and of it times y - bias."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    if FROM_INPUT:
        recovering = _four_rows(normalising, c, channels)
    else:
        recovering = _inverting(statistics, affine, c, channels)
    first = tl.program_id(1) * blocks_each
    total = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    products = tl.zeros((BLOCK, BLOCK_C), tl.float32)
    for index in range(first, tl.minimum(first + blocks_each, blocks)):
        image, n = _block(index, pixels, BLOCK)
        inside = (n < pixels)[:, None] & (c < channels)[None, :]
        place = _places(image, n, c, grad_image, grad_pixel, grad_channel)
        g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        place = _places(image, n, c, kept_image, kept_pixel, kept_channel)
        k = tl.load(kept + place, mask=inside, other=0.0).to(tl.float32)
        g, centered = _recovered(g, k, recovering, parameter, lowest, KIND, FROM_INPUT)
        total += g
        products += g * centered
    part = tl.sum(total, 0), tl.sum(products, 0)
    _store_rows(parts + tl.program_id(1) * 2 * channels, part, c, channels)


@triton.jit
def inplace_abn_backward_coefficients_kernel(
    sums, statistics, affine, coefficients, channels, EPS: tl.constexpr, FROM_INPUT: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """What `_recovered` needs; what the gradient of y, y - bias and 1 count for in that of x."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mean, variance = _row(statistics, 0, c, channels), _row(statistics, 1, c, channels)
    if FROM_INPUT:
        recovering = _normalising(mean, variance, affine, c, channels, EPS)
    else:
        recovering = _inverting(statistics, affine, c, channels)
    _store_rows(coefficients, recovering, c, channels)
    gain, number = _row(affine, 0, c, channels).to(tl.float64), _row(statistics, 2, c, channels)
    inverse = 1.0 / tl.sqrt(variance + EPS)
    by_grad = gain * inverse
    known = number == float("inf")  # statistics that do not depend on the batch
    by_value = -inverse * _row(sums, 1, c, channels) / (gain * number)
    constant = -by_grad * _row(sums, 0, c, channels) / number
    by_value, constant = tl.where(known, 0.0, by_value), tl.where(known, 0.0, constant)
    gradient = by_grad.to(tl.float32), by_value.to(tl.float32), constant.to(tl.float32)
    _store_rows(coefficients + 4 * channels, gradient, c, channels)


@triton.jit
def inplace_abn_backward_kernel(
    grad, kept, grad_x, coefficients, pixels, channels, parameter, lowest,
    grad_image, grad_pixel, grad_channel, kept_image, kept_pixel, kept_channel,
    out_image, out_pixel, out_channel,
    KIND: tl.constexpr, FROM_INPUT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    image, n = _block(tl.program_id(0), pixels, BLOCK)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (n < pixels)[:, None] & (c < channels)[None, :]
    place = _places(image, n, c, grad_image, grad_pixel, grad_channel)
    g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
    place = _places(image, n, c, kept_image, kept_pixel, kept_channel)
    k = tl.load(kept + place, mask=inside, other=0.0).to(tl.float32)
    recovering = _four_rows(coefficients, c, channels)
    g, centered = _recovered(g, k, recovering, parameter, lowest, KIND, FROM_INPUT)
    by_grad, by_value = _row(coefficients, 4, c, channels), _row(coefficients, 5, c, channels)
    constant = _row(coefficients, 6, c, channels)
    result = by_grad[None, :] * g + by_value[None, :] * centered + constant[None, :]
    place = _places(image, n, c, out_image, out_pixel, out_channel)
    tl.store(grad_x + place, result.to(grad_x.dtype.element_ty), mask=inside)


def _walk(*maps: Tensor) -> tuple[tuple[int, int], int, list[int], dict[str, int]]:
    """(blocks of pixels and of channels, pixels of an image, strides of the maps, sizes of blocks).

    Blocks of pixels are by the shape alone, for sums to have one order in any layout.
    """
    images, channels, height, width = maps[-1].shape
    pixels, steps = height * width, [strides(each) for each in maps]
    if pixels == 1:  # a block for each would be nearly empty: they are the pixels of one image
        steps = [(0, image, channel) for image, _, channel in steps]
        images, pixels = 1, images
    block = power_of_two(pixels, most=64)
    # values that lie apart come one by one, each by an address of its own
    block_c = power_of_two(channels, most=64 if maps[-1].stride(1) == 1 else 32)
    blocks = images * triton.cdiv(pixels, block), triton.cdiv(channels, block_c)
    places = [stride for each in steps for stride in each]
    return blocks, pixels, places, {"BLOCK": block, "BLOCK_C": block_c}


def _activation(kind: str, parameter: float) -> tuple[str, float]:
    """The identity is leaky with a slope of 1."""
    return ("leaky_relu", 1.0) if kind == "identity" else (kind, parameter)


def _statistics(
    x: Tensor, known: Tensor | None, affine: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """float64 [3, C] of x, or a copy of the known; with `affine`, float32 [4, C] that normalise."""
    channels, count, parts = x.shape[1], 0, None
    if known is None:
        (blocks, others), pixels, places, sizes = _walk(x)
        count, each = split(blocks, 1, others)
        parts = x.new_empty((count, 3, channels), dtype=torch.float64)
        launch(
            inplace_abn_statistics_kernel, (others, count), x, parts, blocks, pixels, channels,
            each, *places, **sizes, num_warps=_SUMMING_WARPS,
        )  # fmt: skip
    statistics = x.new_empty((3, channels), dtype=torch.float64)
    coefficients = x.new_empty((4, channels), dtype=torch.float32)
    launch(
        inplace_abn_coefficients_kernel, (triton.cdiv(channels, _FEW),),
        parts, known, affine, statistics, coefficients, count, channels, EPS=eps,
        PARTS=power_of_two(count, least=1), BLOCK_C=_FEW,
    )  # fmt: skip
    return statistics, coefficients


def inplace_abn_statistics(x: Tensor) -> Tensor:
    """float64 [3, C]: mean, biased variance, number of values."""
    if x.numel() == 0:
        return x.new_zeros((3, x.shape[1]), dtype=torch.float64)
    return _statistics(walkable(x), None, None, 0.0)[0]


def _apply(
    x: Tensor, z: Tensor, known: Tensor | None, affine: Tensor, eps: float, kind: str,
    parameter: float,
) -> Tensor:  # fmt: skip
    if x.numel() == 0:
        return inplace_abn_statistics(x) if known is None else known.clone()
    statistics, coefficients = _statistics(x, known, affine, eps)
    blocks, pixels, places, sizes = _walk(x, z)
    kind, parameter = _activation(kind, parameter)
    launch(
        inplace_abn_kernel, blocks, x, z, coefficients, pixels, x.shape[1], parameter, *places,
        KIND=kind, **sizes,
    )  # fmt: skip
    return statistics


def inplace_abn(
    x: Tensor, known: Tensor | None, affine: Tensor, eps: float, activation: str, parameter: float
) -> tuple[Tensor, Tensor]:
    z = empty_map(x, x.shape[1])
    return z, _apply(walkable(x), z, known, affine, eps, activation, parameter)


def inplace_abn_(
    x: Tensor, known: Tensor | None, affine: Tensor, eps: float, activation: str, parameter: float
) -> Tensor:
    return _apply(x, x, known, affine, eps, activation, parameter)


def inplace_abn_backward_sums(
    grad: Tensor, kept: Tensor, statistics: Tensor, affine: Tensor, eps: float, activation: str,
    parameter: float, kept_input: bool,
) -> Tensor:  # fmt: skip
    """float64 [2, C]: Σ dy and Σ dy · (y - bias)."""
    if kept.numel() == 0:
        return statistics.new_zeros((2, kept.shape[1]))
    normalising = _statistics(kept, statistics, affine, eps)[1] if kept_input else None
    grad, kept = walkable(grad), walkable(kept)
    kind, parameter = _activation(activation, parameter)
    (blocks, others), pixels, places, sizes = _walk(grad, kept)
    count, each = split(blocks, 1, others)
    parts = kept.new_empty((count, 2, kept.shape[1]), dtype=torch.float32)
    launch(
        inplace_abn_sums_kernel, (others, count), grad, kept, statistics, affine, normalising,
        parts, blocks, pixels, kept.shape[1], each, parameter, _LOWEST_ELU[kept.dtype], *places,
        KIND=kind, FROM_INPUT=kept_input, **sizes, num_warps=_SUMMING_WARPS,
    )  # fmt: skip
    return parts.sum(0, dtype=torch.float64)


def inplace_abn_backward(
    grad: Tensor, kept: Tensor, statistics: Tensor, affine: Tensor, known: Tensor | None,
    eps: float, activation: str, parameter: float, kept_input: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    options = eps, activation, parameter, kept_input
    if known is None:
        sums = inplace_abn_backward_sums(grad, kept, statistics, affine, *options)
    else:
        sums = known.clone()
    grad_x, channels = empty_map(kept, kept.shape[1]), kept.shape[1]
    if kept.numel() == 0:
        return grad_x, sums
    coefficients = kept.new_empty((7, channels), dtype=torch.float32)
    launch(
        inplace_abn_backward_coefficients_kernel, (triton.cdiv(channels, _FEW),),
        sums, statistics, affine, coefficients, channels, EPS=eps, FROM_INPUT=kept_input,
        BLOCK_C=_FEW, num_warps=1,
    )  # fmt: skip
    grad, kept = walkable(grad), walkable(kept)
    kind, parameter = _activation(activation, parameter)
    blocks, pixels, places, sizes = _walk(grad, kept, grad_x)
    launch(
        inplace_abn_backward_kernel, blocks, grad, kept, grad_x, coefficients, pixels, channels,
        parameter, _LOWEST_ELU[kept.dtype], *places, KIND=kind, FROM_INPUT=kept_input, **sizes,
    )  # fmt: skip
    return grad_x, sums
