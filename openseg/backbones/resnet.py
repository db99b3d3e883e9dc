# SPDX-License-Identifier: MIT
"""Residual networks with dilated last stages (He et al. 2016; stem and dilation as published).

A stage that gives up its stride keeps half of its dilation in the convolution that had the stride:
at output stride 8 the first block of layer4 is dilated by 2, the others by 4.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from openseg.backbones.base import Backbone


class BasicBlock(nn.Module):
    """Two 3×3 convolutions; the stride is on the first."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilations: tuple[int, int] = (1, 1),
        downsample: nn.Module | None = None,
    ) -> None:
        """`dilations`: of the convolution that carries the stride, and of any other 3×3 one."""
        super().__init__()
        first, second = dilations
        self.conv1 = conv3x3(in_channels, channels, stride, first)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, 1, second)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.relu(x + identity)


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions; the stride is on the 3×3."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int = 1,
        dilations: tuple[int, int] = (1, 1),
        downsample: nn.Module | None = None,
    ) -> None:
        """`dilations`: as in `BasicBlock`; the only 3×3 convolution here carries the stride."""
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv3x3(channels, channels, stride, dilations[0])
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + identity)


Block = type[BasicBlock] | type[Bottleneck]


class ResNet(Backbone):
    """ResNet that returns the maps of its four stages, finest first.

    `forward`: images [B, in_channels, H, W] -> four maps of strides 4, 8, and then 8 or 16 as
    `output_stride` says, with the channels of `self.channels`. The pooling rounds up: a side of n
    pixels has `ceil(n / 2) // 2 + 1` at stride 4, so that 512 gives 129 and 769 gives 193.
    """

    def __init__(
        self,
        block: Block,
        depths: Sequence[int],
        *,
        deep_stem: bool,
        v1c: bool = False,
        output_stride: int = 8,
        in_channels: int = 3,
        multi_grid: Sequence[int] | None = None,
        uniform_dilation: bool = False,
    ) -> None:
        """`deep_stem`: three 3×3 convolutions in place of the 7×7 ("3x3-ResNet").
        `v1c`: as mmsegmentation has it, half of the channels there and a pooling that rounds down.
        `multi_grid`: a factor on the dilation for each block of layer4 (DeepLabV3, section 3.2).
        `uniform_dilation`: the first block of a stage is dilated as the others are.
        """
        super().__init__()
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride must be 8 or 16, got {output_stride}")
        if multi_grid is None:
            multi_grid = [1] * depths[3]
        if len(multi_grid) != depths[3]:
            raise ValueError(
                f"multi_grid must have a factor for each of the {depths[3]} blocks of layer4, "
                f"got {list(multi_grid)}"
            )
        self.in_channels = in_channels
        self.channels = tuple(width * block.expansion for width in (64, 128, 256, 512))
        stem_channels = 128 if deep_stem and not v1c else 64
        make_stem = deep_stem_of if deep_stem else plain_stem_of
        self.stem = make_stem(in_channels, stem_channels)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=not v1c)

        dilated8 = output_stride == 8
        grid = [(4 if dilated8 else 2) * factor for factor in multi_grid]
        c1, c2, c3, _ = self.channels
        self.layer1 = stage(block, stem_channels, 64, 1, [1] * depths[0])
        self.layer2 = stage(block, c1, 128, 2, [1] * depths[1])
        uniform = uniform_dilation
        stride = 1 if dilated8 else 2
        self.layer3 = stage(block, c2, 256, stride, [1 + dilated8] * depths[2], uniform)
        self.layer4 = stage(block, c3, 512, 1, grid, uniform)
        initialize(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.maxpool(self.stem(images))
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, 3, stride, padding=dilation, dilation=dilation, bias=False
    )


def stage(
    block: Block,
    in_channels: int,
    channels: int,
    stride: int,
    dilations: Sequence[int],
    uniform: bool = False,
) -> nn.Sequential:
    """One residual block for each entry of `dilations`; the first has the stride and the shortcut.

    Where the stage is dilated, its first block stands for one whose stride was taken away: the
    convolution that had it sees the input grid still undilated, hence half of the dilation. If
    `uniform`, it has all of it.
    """
    out_channels = channels * block.expansion
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    first = dilations[0]
    on_stride = first if uniform else max(first // 2, 1)
    blocks = [block(in_channels, channels, stride, (on_stride, first), shortcut)]
    blocks += [block(out_channels, channels, 1, (d, d)) for d in dilations[1:]]
    return nn.Sequential(*blocks)


def deep_stem_of(in_channels: int, out_channels: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    half = out_channels // 2
    plan = ((in_channels, half, 2), (half, half, 1), (half, out_channels, 1))
    for i, (before, after, stride) in enumerate(plan, start=1):
        layers[f"conv{i}"] = conv3x3(before, after, stride)
        layers[f"bn{i}"] = nn.BatchNorm2d(after)
        layers[f"relu{i}"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def plain_stem_of(in_channels: int, out_channels: int) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, 7, stride=2, padding=3, bias=False)
    return nn.Sequential(
        OrderedDict(conv1=conv, bn1=nn.BatchNorm2d(out_channels), relu1=nn.ReLU(inplace=True))
    )


def initialize(network: nn.Module) -> None:
    """Convolutions N(0, 2 / (k² · out)), norms 1 and 0: He et al. 2015 over the fan-out."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
