# SPDX-License-Identifier: MIT
"""ContextScenes: drawn landscapes in which most pixels need distant context to be told apart.

One wood looks like any other and one field like any other. The clouds say what the field grows and
the flowers of the meadow say which trees stand behind it, but only all together: of three colours
the one that covers half of the sky (or meadow) counts, and each stretch of it may mislead. A
network that sees a neighbourhood is left to guess between three kinds.
"""

import math

import numpy as np

from openseg.data import palettes
from openseg.data.base import Color, DatasetInfo, Sample

_CLASSES = (
    "sky",
    *("pines", "oaks", "beeches"),
    *("wheat", "barley", "rye"),
    *("meadow", "path", "hut"),
)
_SPLITS = ("train", "val", "test")

# A region is what is painted in one colour. Pictures are drawn as maps of regions; the kinds of
# wood and field enter only through the two tables below, so nothing but the cues can betray them.
# The three regions of the clouds and of the flowers are the true colour and two that mislead.
_CLOUDS, _FLOWERS = 0, 3  # to 2, to 5
_GRASS, _WOOD, _FIELD, _PATH, _WALL, _ROOF, _DOOR = range(6, 13)
_COLORS: tuple[Color, ...] = (
    *((0, 0, 0),) * 3,  # clouds: by the kind of the field
    *((0, 0, 0),) * 3,  # flowers: by the kind of the wood
    (112, 158, 72),
    (62, 104, 64),
    (212, 178, 96),
    (176, 150, 122),
    (236, 226, 206),
    (176, 62, 48),
    (92, 62, 44),
)
_CLOUD_COLORS = np.array([(150, 190, 236), (240, 186, 170), (176, 168, 214)], dtype=np.int32)
_FLOWER_COLORS = np.array([(226, 56, 50), (84, 84, 226), (250, 244, 236)], dtype=np.int32)
_LABELS = (0, 0, 0, 7, 7, 7, 7, 1, 4, 8, 9, 9, 9)  # wood and field: the first of three kinds
_STRETCHES = (0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2)  # of sky and meadow: half of them tell the truth
KINDS = 3


class ContextScenes:
    """The built-in data set: scene `index` of a split is drawn anew at each load, alike everywhere.

    Ten classes; pines, oaks and beeches share one appearance, as do wheat, barley and rye. The
    wider the picture, the farther is the context: (64, 256) is a panorama.
    size: (height, width) in pixels, 32 at least. Only integers decide a pixel, and they come
    from the raw PCG64 stream, so images and labels are equal on every platform.
    """

    def __init__(
        self,
        size: tuple[int, int] = (128, 128),
        length: int = 1000,
        seed: int = 0,
        split: str = "train",
    ) -> None:
        if min(size) < 32:
            raise ValueError(f"size: {size}; scenes need at least 32 pixels in height and width")
        if split not in _SPLITS:
            raise ValueError(f"split: {split!r}; expected one of {', '.join(_SPLITS)}")
        self.info = DatasetInfo("context_scenes", _CLASSES, palettes.SCENES)
        self.size = size
        self.length = length
        self.seed = seed
        self.split = split

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return self.load(index)

    def load(self, index: int) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(f"scene {index} of {self.length}")
        dice = _Dice(self.seed, _SPLITS.index(self.split), index)
        wood, field = dice.integer(0, KINDS), dice.integer(0, KINDS)
        image, label = draw_scene(dice, *self.size, wood, field)
        return Sample(image, label, f"{self.split}_{index:06d}")


class _Dice:
    """Random integers from the raw PCG64 stream, which NumPy keeps for ever (NEP 19)."""

    def __init__(self, *key: int) -> None:
        self._bits = np.random.PCG64(np.random.SeedSequence(key))

    def integer(self, low: int, high: int) -> int:
        """An integer of [low, high)."""
        return low + (int(self._bits.random_raw()) * (high - low) >> 64)

    def noise(self, height: int, width: int) -> np.ndarray:
        """int32 [height, width] of 0..255, white."""
        words = self._bits.random_raw((height * width + 7) // 8).astype("<u8")
        noise = words.view(np.uint8)[: height * width].reshape(height, width)
        return noise.astype(np.int32)

    def smooth(self, height: int, width: int, rows: int, columns: int) -> np.ndarray:
        """int32 [height, width] of 0..255: white noise on `rows` × `columns` cells, eased between
        their corners."""
        grid = self.noise(rows + 1, columns + 1)
        y, v = _ease(height, rows)
        x, u = _ease(width, columns)
        lines = grid[y] * (256 - v)[:, None] + grid[y + 1] * v[:, None]
        return (lines[:, x] * (256 - u) + lines[:, x + 1] * u) >> 16


def _ease(size: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """For each pixel of a line its cell, and how far it is into it: 0..255, smoothstep."""
    place = np.arange(size, dtype=np.int32) * cells * 256 // size
    part = place & 255
    return place >> 8, part * part * (768 - 2 * part) >> 16


def draw_scene(
    dice: _Dice, height: int, width: int, wood: int, field: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one landscape: image uint8 [H, W, 3] and label uint8 [H, W].

    The two kinds (0..2) change the colour of the cues and the labels, and no other pixel.
    """
    region, shade = _land(dice, height, width)
    _add_meadow(dice, region, shade)
    _add_hut(dice, region, shade)
    shade += dice.noise(height, width) // 16 - 8

    colors = np.array(_COLORS, dtype=np.int32)
    colors[_CLOUDS : _CLOUDS + KINDS] = np.roll(_CLOUD_COLORS, -field, axis=0)
    colors[_FLOWERS : _FLOWERS + KINDS] = np.roll(_FLOWER_COLORS, -wood, axis=0)
    labels = np.array(_LABELS, dtype=np.uint8)
    labels[_WOOD] += wood
    labels[_FIELD] += field
    image = np.clip(colors[region] + shade[..., None], 0, 255).astype(np.uint8)
    return image, labels[region]


def _land(dice: _Dice, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Sky, wood, field and path: regions and brightness, int32 [H, W] both."""
    y = np.arange(height, dtype=np.int32)[:, None]
    x = np.arange(width, dtype=np.int32)
    ridge = height * dice.integer(66, 82) // 256  # tops of the wood
    horizon = height * dice.integer(118, 132) // 256  # its foot, where the field begins
    crowns = dice.smooth(1, width, 1, 1 + 24 * width // height)[0]
    crowns += 2 * dice.smooth(1, width, 1, 5)[0]
    tops = ridge + (crowns - 384) * height // 8192
    foot = horizon + (dice.smooth(1, width, 1, 3)[0] - 128) * height // 4096
    light = dice.smooth(height, width, 9, 1 + 4 * width // height) // 5 - 40 + y * 60 // height
    leaves = dice.smooth(height, width, 36, 1 + 36 * width // height) // 4 - 32

    vanishing_x = width * dice.integer(64, 192) // 256
    depth = np.maximum(y - horizon + height // 8, 1)
    furrows = np.abs(((x - vanishing_x) * 1024 // depth & 127) - 64) // 3 - 12
    way = np.maximum(y - horizon, 0) * 256 // (height - horizon)  # 0 far .. 255 near
    end_x = width * dice.integer(32, 224) // 256
    middle = vanishing_x + ((end_x - vanishing_x) * way >> 8) * way // 256
    on_path = np.abs(x - middle) * 256 < _unit(height, width) * (5 + way // 8)

    clouds = _CLOUDS + _stretches(dice, height, width)
    region = np.where(y < tops, clouds, np.where(y < foot, _WOOD, _FIELD))
    shade = np.where(y < tops, light, np.where(y < foot, leaves, furrows))
    path = on_path & (region == _FIELD)
    region[path] = _PATH
    shade[path] = 0
    return region, shade


def _unit(height: int, width: int) -> int:
    """The length that things are measured by: the mean side, but what fits into a panorama."""
    return min(math.isqrt(height * width), height * 3 // 2, width * 3 // 2)


def _stretches(dice: _Dice, height: int, width: int) -> np.ndarray:
    """int32 [H, W] of 0..2: stretches with wavy borders, side by side in random order."""
    order = list(_STRETCHES)
    for last in range(len(order) - 1, 0, -1):
        other = dice.integer(0, last + 1)
        order[last], order[other] = order[other], order[last]
    sway = dice.smooth(height, width, 8, 1 + 4 * width // height) - 128
    place = np.arange(width, dtype=np.int32) * len(order) * 256 // width + sway
    return np.array(order, dtype=np.int32)[np.clip(place >> 8, 0, len(order) - 1)]


def _add_meadow(dice: _Dice, region: np.ndarray, shade: np.ndarray) -> None:
    """Grass and flowers in the foreground, from edge to edge but for the path."""
    height, width = region.shape
    brink = height * dice.integer(204, 220) // 256
    edge = brink + (dice.smooth(1, width, 1, 4)[0] - 128) * height // 4096
    meadow = (np.arange(height)[:, None] >= edge) & (region != _PATH)
    dot = max(math.isqrt(height * width) // 64, 1)  # side of a flower in pixels
    dots = dice.noise(height // dot + 1, width // dot + 1) < 110
    in_flower = dots.repeat(dot, axis=0)[:height].repeat(dot, axis=1)[:, :width]
    flowers = _FLOWERS + _stretches(dice, height, width)
    region[meadow] = np.where(in_flower, flowers, _GRASS)[meadow]
    shade[meadow] = 0


def _add_hut(dice: _Dice, region: np.ndarray, shade: np.ndarray) -> None:
    """A hut on the field, which tells nothing."""
    height, width = region.shape
    size = _unit(height, width) * dice.integer(22, 28) // 256  # half the width of the roof
    left, floor = width * dice.integer(26, 230) // 256, height * dice.integer(180, 200) // 256
    y = floor - np.arange(height, dtype=np.int32)[:, None]  # upwards from the floor
    x = np.abs(np.arange(width, dtype=np.int32) - left)
    wall = (x * 5 < size * 4) & (y >= 0) & (y * 3 < size * 2)
    roof = (y * 3 >= size * 2) & ((y * 3 - size * 2) + x * 4 < size * 4)
    door = (x * 4 < size) & (y >= 0) & (y * 2 < size)
    region[wall], region[roof], region[door] = _WALL, _ROOF, _DOOR
    shade[wall | roof] = 0
