# SPDX-License-Identifier: MIT
"""Backbones: images [B, C, H, W] in, a list of feature maps, finest first, out.

The last map is for the main head, the one before it for the auxiliary head.
"""

import difflib
from collections.abc import Sequence

from openseg.backbones.base import Backbone
from openseg.backbones.resnet import BasicBlock, Block, Bottleneck, ResNet

_RESNETS: dict[int, tuple[Block, Sequence[int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}

__all__ = ["Backbone", "ResNet", "create_backbone", "list_backbones"]


def list_backbones() -> list[str]:
    """The names that `create_backbone` knows; a final "c" marks the stem of three 3×3."""
    return [f"resnet{depth}{stem}" for depth in _RESNETS for stem in ("", "c")]


def create_backbone(
    name: str,
    *,
    output_stride: int = 8,
    in_channels: int = 3,
    multi_grid: Sequence[int] | None = None,
    uniform_dilation: bool = False,
) -> Backbone:
    """Build a backbone with fresh weights.

    Args:
        name: one of `list_backbones()`; "resnet101c" is the "3x3-ResNet-101" of the tables.
        output_stride: 8 or 16, of the last map.
        in_channels: channels of the images.
        multi_grid: factors on the dilation of the blocks of layer4; None is all ones.
        uniform_dilation: dilate the first block of a stage as the others, as the OCNet original.

    Returns:
        A `Backbone`: images [B, in_channels, H, W] -> list of maps, finest first.

    Raises:
        ValueError: an unknown name (the message has the nearest ones) or option.
    """
    if name not in list_backbones():
        near = difflib.get_close_matches(name, list_backbones(), n=3) or list_backbones()
        raise ValueError(f"unknown backbone {name!r}; did you mean {', '.join(near)}?")
    block, depths = _RESNETS[int(name.removeprefix("resnet").removesuffix("c"))]
    return ResNet(
        block,
        depths,
        deep_stem=name.endswith("c"),
        output_stride=output_stride,
        in_channels=in_channels,
        multi_grid=multi_grid,
        uniform_dilation=uniform_dilation,
    )
