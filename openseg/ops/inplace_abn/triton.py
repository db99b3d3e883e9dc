# SPDX-License-Identifier: MIT
"""Triton kernels of `inplace_abn`: sums over parts of the map, then one pass that applies them.

What a channel needs is put into coefficients in float64, between the kernels; the parts of a sum
are added there too, in their order.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from openseg.ops._layout import empty_map
from openseg.ops._triton import launch, power_of_two, split, strides, walkable

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
    parts += tl.program_id(1) * 3 * channels + c
    tl.store(parts, tl.zeros((BLOCK_C,), tl.float64) + total, mask=c < channels)
    tl.store(parts + channels, shift.to(tl.float64) + common, mask=c < channels)
    tl.store(parts + 2 * channels, tl.sum(squares, 0).to(tl.float64), mask=c < channels)


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
    mean = tl.load(coefficients + c, mask=c < channels, other=0.0)[None, :]
    scale = tl.load(coefficients + channels + c, mask=c < channels, other=0.0)[None, :]
    rest = tl.load(coefficients + 2 * channels + c, mask=c < channels, other=0.0)[None, :]
    bias = tl.load(coefficients + 3 * channels + c, mask=c < channels, other=0.0)[None, :]
    y = (values - mean) * scale + rest + bias
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
def _recovered(
    grad, kept, coefficients, c, channels, parameter, lowest, KIND: tl.constexpr,
    FROM_INPUT: tl.constexpr,
):  # fmt: skip
    """The gradient of y, and y - bias; where y is 0, the gradient is that of its negative side."""
    first = tl.load(coefficients + c, mask=c < channels, other=0.0)[None, :]
    second = tl.load(coefficients + channels + c, mask=c < channels, other=0.0)[None, :]
    if FROM_INPUT:
        rest = tl.load(coefficients + 2 * channels + c, mask=c < channels, other=0.0)[None, :]
        bias = tl.load(coefficients + 3 * channels + c, mask=c < channels, other=0.0)[None, :]
        centered = (kept - first) * second + rest
        y = centered + bias
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
    grad, kept, coefficients, parts, blocks, pixels, channels, blocks_each, parameter, lowest,
    grad_image, grad_pixel, grad_channel, kept_image, kept_pixel, kept_channel,
    KIND: tl.constexpr, FROM_INPUT: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums over a part of the gradient of y, and of it times y - bias."""
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
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
        g, centered = _recovered(
            g, k, coefficients, c, channels, parameter, lowest, KIND, FROM_INPUT
        )
        total += g
        products += g * centered
    parts += tl.program_id(1) * 2 * channels + c
    tl.store(parts, tl.sum(total, 0), mask=c < channels)
    tl.store(parts + channels, tl.sum(products, 0), mask=c < channels)


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
    g, centered = _recovered(g, k, coefficients, c, channels, parameter, lowest, KIND, FROM_INPUT)
    coefficients += 4 * channels + c
    by_grad = tl.load(coefficients, mask=c < channels, other=0.0)[None, :]
    by_value = tl.load(coefficients + channels, mask=c < channels, other=0.0)[None, :]
    constant = tl.load(coefficients + 2 * channels, mask=c < channels, other=0.0)[None, :]
    result = by_grad * g + by_value * centered + constant
    place = _places(image, n, c, out_image, out_pixel, out_channel)
    tl.store(grad_x + place, result.to(grad_x.dtype.element_ty), mask=inside)


def _blocks(*maps: Tensor) -> tuple[int, int, int, list[int]]:
    """(blocks of all images, pixels of a block, pixels of an image, the strides of each map).

    By the shape alone, for sums to have one order in any layout.
    """
    images, _, height, width = maps[0].shape
    pixels, steps = height * width, [strides(each) for each in maps]
    if pixels == 1:  # a block for each would be nearly empty: they are the pixels of one image
        steps = [(0, image, channel) for image, _, channel in steps]
        images, pixels = 1, images
    block = power_of_two(pixels, most=64)
    return images * triton.cdiv(pixels, block), block, pixels, [s for each in steps for s in each]


def _channels(x: Tensor) -> int:
    """Of a block; values that lie apart come one by one, each by an address of its own."""
    return power_of_two(x.shape[1], most=64 if x.stride(1) == 1 else 32)


def _warps(block_c: int) -> int:
    """Of a program that keeps sums in registers: those of 16 elements of the block in a thread."""
    return max(4, block_c // 8)


def _activation(kind: str, parameter: float) -> tuple[str, float]:
    """The identity is leaky with a slope of 1."""
    return ("leaky_relu", 1.0) if kind == "identity" else (kind, parameter)


def inplace_abn_statistics(x: Tensor) -> Tensor:
    """float64 [3, C]: mean, biased variance, number of values."""
    x, channels = walkable(x), x.shape[1]
    if x.numel() == 0:
        return x.new_zeros((3, channels), dtype=torch.float64)
    blocks, block, pixels, places = _blocks(x)
    block_c = _channels(x)
    programs = triton.cdiv(channels, block_c)
    count, each = split(blocks, 1, programs)
    parts = x.new_empty((count, 3, channels), dtype=torch.float64)
    launch(
        inplace_abn_statistics_kernel, (programs, count), x, parts, blocks, pixels, channels, each,
        *places, BLOCK=block, BLOCK_C=block_c, num_warps=_warps(block_c),
    )  # fmt: skip
    number, means, squares = parts.unbind(1)
    total = number.sum(0)
    mean = (number * means).sum(0) / total
    variance = (squares + number * (means - mean) ** 2).sum(0) / total
    return torch.stack([mean, variance, total])


def _normalising(statistics: Tensor, affine: Tensor, eps: float) -> Tensor:
    """float32 [4, C]: y - bias is (x - first) · second + third; the fourth is the bias."""
    mean, variance, _ = statistics
    gain, bias = affine.double()
    scale = gain * (variance + eps).rsqrt()
    rest = (mean.float().double() - mean) * scale
    return torch.stack([mean, scale, rest, bias]).float()


def _apply(
    x: Tensor, z: Tensor, known: Tensor | None, affine: Tensor, eps: float, kind: str,
    parameter: float,
) -> Tensor:  # fmt: skip
    statistics = inplace_abn_statistics(x) if known is None else known.clone()
    if x.numel() == 0:
        return statistics
    blocks, block, pixels, places = _blocks(x, z)
    channels, block_c = x.shape[1], _channels(x)
    kind, parameter = _activation(kind, parameter)
    launch(
        inplace_abn_kernel, (blocks, triton.cdiv(channels, block_c)),
        x, z, _normalising(statistics, affine, eps), pixels, channels, parameter, *places,
        KIND=kind, BLOCK=block, BLOCK_C=block_c,
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


def _recovering(statistics: Tensor, affine: Tensor, eps: float, kept_input: bool) -> Tensor:
    """float32 [4, C] for `_recovered`."""
    if kept_input:
        return _normalising(statistics, affine, eps)
    gain, bias = affine
    most = gain * (statistics[2] - 1).clamp(min=0).sqrt().float()
    return torch.stack([bias, most, torch.zeros_like(bias), torch.zeros_like(bias)])


def inplace_abn_backward_sums(
    grad: Tensor, kept: Tensor, statistics: Tensor, affine: Tensor, eps: float, activation: str,
    parameter: float, kept_input: bool,
) -> Tensor:  # fmt: skip
    """float64 [2, C]: Σ dy and Σ dy · (y - bias)."""
    channels = kept.shape[1]
    if kept.numel() == 0:
        return statistics.new_zeros((2, channels))
    coefficients = _recovering(statistics, affine, eps, kept_input)
    lowest = _LOWEST_ELU[kept.dtype]
    grad, kept = walkable(grad), walkable(kept)
    kind, parameter = _activation(activation, parameter)
    blocks, block, pixels, places = _blocks(grad, kept)
    block_c = _channels(kept)
    programs = triton.cdiv(channels, block_c)
    count, each = split(blocks, 1, programs)
    parts = kept.new_empty((count, 2, channels), dtype=torch.float32)
    launch(
        inplace_abn_sums_kernel, (programs, count), grad, kept, coefficients, parts, blocks,
        pixels, channels, each, parameter, lowest, *places, KIND=kind, FROM_INPUT=kept_input,
        BLOCK=block, BLOCK_C=block_c, num_warps=_warps(block_c),
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
    channels = kept.shape[1]
    grad_x = empty_map(kept, channels)
    if kept.numel() == 0:
        return grad_x, sums
    _, variance, number = statistics
    gain, inverse = affine[0].double(), (variance + eps).rsqrt()
    by_grad = gain * inverse
    gradient = [by_grad, -inverse * sums[1] / (gain * number), -by_grad * sums[0] / number]
    recovering = _recovering(statistics, affine, eps, kept_input)
    coefficients = torch.cat([recovering, torch.stack(gradient).float()])
    lowest = _LOWEST_ELU[kept.dtype]
    grad, kept = walkable(grad), walkable(kept)
    kind, parameter = _activation(activation, parameter)
    blocks, block, pixels, places = _blocks(grad, kept, grad_x)
    block_c = _channels(kept)
    launch(
        inplace_abn_backward_kernel, (blocks, triton.cdiv(channels, block_c)), grad, kept, grad_x,
        coefficients, pixels, channels, parameter, lowest, *places, KIND=kind,
        FROM_INPUT=kept_input, BLOCK=block, BLOCK_C=block_c,
    )  # fmt: skip
    return grad_x, sums
