# SPDX-License-Identifier: MIT
"""High-resolution networks (Wang et al.: HRNetV2, 2019): parallel branches that exchange maps.

The branches are upsampled to the finest one and concatenated, so there is a single map, of stride
4, and it serves the auxiliary head as well.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from openseg.backbones.base import Backbone
from openseg.backbones.resnet import BasicBlock, Bottleneck, conv3x3, stage
from openseg.layers import upsample_like

_MODULES = {2: 1, 3: 4, 4: 3}
"""Modules of each stage; the stage's number is that of its branches."""


class HRNet(Backbone):
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
        self.transition1 = transition([256], widths[:2])
        self.stage2 = exchanges(widths[:2], align_corners)
        self.transition2 = transition(widths[:2], widths[:3])
        self.stage3 = exchanges(widths[:3], align_corners)
        self.transition3 = transition(widths[:3], widths)
        self.stage4 = exchanges(widths, align_corners)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.001)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.relu(self.bn2(self.conv2(x)))
        maps = [self.layer1(x)]
        for change, blocks in (
            (self.transition1, self.stage2),
            (self.transition2, self.stage3),
            (self.transition3, self.stage4),
        ):
            coarsest = maps[-1]
            maps += [coarsest] * (len(change) - len(maps))
            maps = blocks([layer(x) for layer, x in zip(change, maps, strict=True)])
        maps[1:] = [upsample_like(x, maps[0], self.align_corners) for x in maps[1:]]
        return [torch.cat(maps, dim=1)]


class Exchange(nn.Module):
    """Four residual blocks on each branch; then every branch receives the sum of all."""

    def __init__(self, widths: list[int], align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.branches = nn.ModuleList(stage(BasicBlock, w, w, 1, [1] * 4) for w in widths)
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


def exchanges(widths: list[int], align_corners: bool) -> nn.Sequential:
    return nn.Sequential(*(Exchange(widths, align_corners) for _ in range(_MODULES[len(widths)])))


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
