# SPDX-License-Identifier: MIT
"""Resizing and softmax in plain NumPy, each from its definition: what tests recompute with."""

import numpy as np


def bilinear(maps, size):
    """maps [..., h, w] at `size`, corners on corners."""
    for axis, length in zip((-2, -1), size, strict=True):
        old = maps.shape[axis]
        position = np.arange(length) * ((old - 1) / max(length - 1, 1))
        first = np.minimum(position.astype(int), old - 1)
        second = np.minimum(first + 1, old - 1)
        share = position - first
        ends = (np.moveaxis(maps.take(index, axis), axis, -1) for index in (first, second))
        near, far = ends
        maps = np.moveaxis(near * (1 - share) + far * share, -1, axis)
    return maps


def bicubic(maps, size):
    """maps [..., h, w] at `size`: half-pixel centres, border repeated, Keys' kernel of -0.75."""
    for axis, length in zip((-2, -1), size, strict=True):
        old = maps.shape[axis]
        total = 0
        center = (np.arange(length) + 0.5) * old / length - 0.5
        for offset in (-1, 0, 1, 2):
            place = np.floor(center) + offset
            x = np.abs(center - place)
            near = 1.25 * x**3 - 2.25 * x**2 + 1
            far = -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            taken = maps.take(place.clip(0, old - 1).astype(int), axis)
            total = total + np.moveaxis(taken, axis, -1) * np.where(x <= 1, near, far)
        maps = np.moveaxis(total, -1, axis)
    return maps


def softmax(logits, axis):
    powers = np.exp(logits - logits.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)
