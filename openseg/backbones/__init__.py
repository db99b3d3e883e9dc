# SPDX-License-Identifier: MIT
"""Backbones: images [B, C, H, W] in, a list of feature maps, finest first, out.

The last map is for the main head and the one before it for the auxiliary head; a single one is for
both.
"""

import difflib
import re
from collections.abc import Sequence

from openseg.backbones.base import Backbone
from openseg.backbones.hrnet import HRNet, HRNet2x
from openseg.backbones.resnet import BasicBlock, Block, Bottleneck, ResNet
from openseg.backbones.wide_resnet import WideResNet38

_RESNETS: dict[int, tuple[Block, Sequence[int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}
_V1C_DEPTHS = (50, 101)
_HRNET_WIDTHS = (18, 32, 48, 64)

__all__ = [
    "Backbone",
    "HRNet",
    "HRNet2x",
    "ResNet",
    "WideResNet38",
    "create_backbone",
    "list_backbones",
]


def list_backbones() -> list[str]:
    """The names that `create_backbone` knows; a final "c" marks the stem of three 3×3, and "_v1c"
    that of mmsegmentation, with half of the channels and a pooling that rounds down."""
    resnets = [f"resnet{depth}{stem}" for depth in _RESNETS for stem in ("", "c")]
    resnets += [f"resnet{depth}_v1c" for depth in _V1C_DEPTHS]
    hrnets = [f"hrnet_w{width}" for width in _HRNET_WIDTHS]
    return [*resnets, *hrnets, "hrnet2x_w20", "wide_resnet38"]


def create_backbone(
    name: str,
    *,
    output_stride: int = 8,
    in_channels: int = 3,
    multi_grid: Sequence[int] | None = None,
    uniform_dilation: bool = False,
    align_corners: bool = True,
) -> Backbone:
    """Build a backbone with fresh weights.

    Args:
        name: one of `list_backbones()`; "resnet101c" is the "3x3-ResNet-101" of the tables.
        output_stride: 8 or 16, of the last map. An HRNet has 4 and HRNet2x 2, whatever is asked
            for.
        in_channels: channels of the images.
        multi_grid: factors on the dilation of the blocks of layer4; None is all ones.
        uniform_dilation: dilate the first block of a stage as the others, as the OCNet original.
        align_corners: of the upsampling between the branches of an HRNet.

    Returns:
        A `Backbone`: images [B, in_channels, H, W] -> list of maps, finest first.

    Raises:
        ValueError: an unknown name (the message has the nearest ones) or option.
    """
    if name not in list_backbones():
        near = difflib.get_close_matches(str(name), list_backbones(), n=3) or list_backbones()
        raise ValueError(f"unknown backbone {name!r}; did you mean {', '.join(near)}?")
    if multi_grid is not None and not name.startswith("resnet"):
        raise ValueError(f"multi_grid is an option of ResNets alone, {name} must have None")
    if name == "wide_resnet38":
        if output_stride != 8:
            raise ValueError(f"output_stride of {name} must be 8, got {output_stride}")
        return WideResNet38(in_channels=in_channels)
    if name.startswith("hrnet"):
        network = HRNet2x if name.startswith("hrnet2x") else HRNet
        width = int(name.rpartition("_w")[2])
        return network(width, in_channels=in_channels, align_corners=align_corners)
    block, depths = _RESNETS[int(re.findall(r"\d+", name)[0])]
    return ResNet(
        block,
        depths,
        deep_stem=name.endswith("c"),
        v1c=name.endswith("_v1c"),
        output_stride=output_stride,
        in_channels=in_channels,
        multi_grid=multi_grid,
        uniform_dilation=uniform_dilation,
    )
