# SPDX-License-Identifier: MIT
"""High-resolution networks (Wang et al.: HRNetV2, 2019): parallel branches that exchange maps.

The branches are upsampled to the finest one and concatenated, so there is a single map, and it
serves the auxiliary head as well. Its stride is 4, or 2 in HRNet2x (Yuan et al.: SegFix, 2020).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from openseg.backbones.base import Backbone
from openseg.backbones.resnet import BasicBlock, Block, Bottleneck, conv3x3, stage
from openseg.layers import upsample_like

_MODULES = {1: 1, 2: 1, 3: 4, 4: 3}
"""Modules of each stage."""


class ParallelBranches(Backbone):
    """Stages of branches: `transition{n}` makes the maps that `stage{n + 1}` works on."""

    align_corners: bool

    def add_stage(
        self, number: int, before: list[int], after: list[int], block: Block = BasicBlock
    ) -> None:
        """`before`, `after`: channels of the branches of the stage before and of this one."""
        self.add_module(f"transition{number - 1}", transition(before, after))
        modules = (Exchange(after, self.align_corners, block) for _ in range(_MODULES[number]))
        self.add_module(f"stage{number}", nn.Sequential(*modules))

    def run_stages(self, x: Tensor, first: int) -> Tensor:
        """From the map that stage `first` starts with to all branches at the size of the finest."""
        maps = [x]
        for number in range(first, 5):
            layers = self.get_submodule(f"transition{number - 1}").children()
            coarsest = maps[-1]
            maps = [layer(maps[i] if i < len(maps) else coarsest) for i, layer in enumerate(layers)]
            maps = self.get_submodule(f"stage{number}")(maps)
        maps[1:] = [upsample_like(x, maps[0], self.align_corners) for x in maps[1:]]
        return torch.cat(maps, dim=1)


class HRNet(ParallelBranches):
    """`forward`: images [B, in_channels, H, W] -> [one map [B, 15 · width, H/4, W/4]]."""

    def __init__(self, width: int, *, in_channels: int = 3, align_corners: bool = True) -> None:
        """`width`: channels of the finest branch; `align_corners`: of the exchanges too."""
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.in_channels = in_channels
        self.channels = (sum(widths),)
        self.align_corners = align_corners
        self.conv1 = conv3x3(in_channels, 64, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = conv3x3(64, 64, stride=2)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = stage(Bottleneck, 64, 64, 1, [1] * 4)
        self.add_stage(2, [256], widths[:2])
        self.add_stage(3, widths[:2], widths[:3])
        self.add_stage(4, widths[:3], widths)
        initialize(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        return [self.run_stages(self.layer1(x), first=2)]


class HRNet2x(ParallelBranches):
    """`forward`: images [B, in_channels, H, W] -> [one map [B, 31 · width, H/2, W/2]].

    One strided convolution as stem, two branches of bottlenecks, and then up to five of basic
    blocks.
    """

    def __init__(self, width: int, *, in_channels: int = 3, align_corners: bool = True) -> None:
        super().__init__()
        widths = [width << i for i in range(5)]
        self.in_channels = in_channels
        self.channels = (sum(widths),)
        self.align_corners = align_corners
        self.conv1 = conv3x3(in_channels, 64, stride=2)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.add_stage(1, [64], [128, 256], Bottleneck)
        self.add_stage(2, [128, 256], widths[:3])
        self.add_stage(3, widths[:3], widths[:4])
        self.add_stage(4, widths[:4], widths)
        initialize(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [self.run_stages(self.relu(self.bn1(self.conv1(images))), first=1)]


class Exchange(nn.Module):
    """Four residual blocks on each branch; then every branch receives the sum of all."""

    def __init__(self, widths: list[int], align_corners: bool, block: Block) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.branches = nn.ModuleList(
            stage(block, w, w // block.expansion, 1, [1] * 4) for w in widths
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(path_between(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        return [self.relu(self.fuse(maps, target)) for target in range(len(maps))]

    def fuse(self, maps: list[Tensor], target: int) -> Tensor:
        total = maps[target]
        for source, path in enumerate(self.fuse_layers[target].children()):
            if source < target:
                total = total + path(maps[source])
            elif source > target:
                total = total + upsample_like(path(maps[source]), maps[target], self.align_corners)
        return total


def initialize(network: nn.Module) -> None:
    """Convolutions N(0, 0.001), as published."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.001)


def downsampling(in_channels: int, out_channels: int, *, relu: bool = True) -> nn.Sequential:
    layers = [conv3x3(in_channels, out_channels, stride=2), nn.BatchNorm2d(out_channels)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


def path_between(widths: list[int], source: int, target: int) -> nn.Module:
    """From one branch to another: 1×1 upwards (upsampled afterwards), strided 3×3 downwards."""
    if source == target:
        return nn.Identity()
    if source > target:
        conv = nn.Conv2d(widths[source], widths[target], 1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(widths[target]))
    channels = [widths[source]] * (target - source) + [widths[target]]
    steps = list(pairwise(channels))
    return nn.Sequential(
        *(downsampling(*step, relu=i + 1 < len(steps)) for i, step in enumerate(steps))
    )


def transition(before: list[int], after: list[int]) -> nn.ModuleList:
    """A layer for each branch to come; the new one is made of the coarsest of those before."""
    layers: list[nn.Module] = []
    for i, width in enumerate(after):
        if i >= len(before):
            layers.append(nn.Sequential(downsampling(before[-1], width)))
        elif before[i] != width:
            layers.append(
                nn.Sequential(
                    conv3x3(before[i], width), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
                )
            )
        else:
            layers.append(nn.Identity())
    return nn.ModuleList(layers)
