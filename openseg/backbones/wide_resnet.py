# SPDX-License-Identifier: MIT
"""Wide residual network of 38 layers (Wu, Shen, van den Hengel 2016), in its dilated A2 form.

Norm and activation stand before the convolutions, and their activation is exchanged together with
that of the heads: the published weights are InPlaceABN throughout.
"""

from collections import OrderedDict

from torch import Tensor, nn

from openseg.backbones.base import Backbone
from openseg.backbones.resnet import conv3x3, initialize
from openseg.layers import NormAct

# Of mod2 … mod7: blocks, channels inside a block, dilation.
_PLAN = (
    (3, (128, 128), 1),
    (3, (256, 256), 1),
    (6, (512, 512), 1),
    (3, (512, 1024), 2),
    (1, (512, 1024, 2048), 4),
    (1, (1024, 2048, 4096), 4),
)


class WideResNet38(Backbone):
    """`forward`: images [B, in_channels, H, W] -> maps of mod4 to mod7, all of stride 8.

    The poolings round up, as those of the ResNets: a side of 512 pixels becomes 257, 129 and 65.
    """

    def __init__(self, *, in_channels: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.channels = (512, 1024, 2048, 4096)
        self.mod1 = nn.Sequential(OrderedDict(conv1=conv3x3(in_channels, 64)))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)
        width = 64
        for number, (count, channels, dilation) in enumerate(_PLAN, start=2):
            blocks: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(count):
                stride = 2 if number == 4 and i == 0 else 1
                blocks[f"block{i + 1}"] = PreActivationBlock(width, channels, stride, dilation)
                width = channels[-1]
            self.add_module(f"mod{number}", nn.Sequential(blocks))
        self.bn_out = NormAct(width)
        initialize(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.mod1(images)
        maps = []
        for number in range(2, 8):
            if number < 4:
                x = self.pool(x)
            x = self.get_submodule(f"mod{number}")(x)
            maps.append(x)
        maps[-1] = self.bn_out(x)
        return maps[2:]


class PreActivationBlock(nn.Module):
    """Two 3×3 convolutions, or 1×1, 3×3, 1×1 where `channels` has three entries."""

    def __init__(
        self, in_channels: int, channels: tuple[int, ...], stride: int, dilation: int
    ) -> None:
        super().__init__()
        self.bn1 = NormAct(in_channels)
        first, second, *third = channels
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if third:
            layers["conv1"] = nn.Conv2d(in_channels, first, 1, stride, bias=False)
        else:
            layers["conv1"] = conv3x3(in_channels, first, stride, dilation)
        layers["bn2"] = NormAct(first)
        layers["conv2"] = conv3x3(first, second, 1, dilation)
        if third:
            layers["bn3"] = NormAct(second)
            layers["conv3"] = nn.Conv2d(second, third[0], 1, bias=False)
        self.convs = nn.Sequential(layers)
        self.proj_conv = None
        if stride != 1 or in_channels != channels[-1]:
            self.proj_conv = nn.Conv2d(in_channels, channels[-1], 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.bn1(x)
        shortcut = x if self.proj_conv is None else self.proj_conv(activated)
        return self.convs(activated) + shortcut
