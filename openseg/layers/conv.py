# SPDX-License-Identifier: MIT
"""The convolution that heads are made of: convolution, batch norm, activation.

The bias before the norm is redundant, but published checkpoints have it, so it is an argument.
"""

from collections import OrderedDict

from torch import nn

LEAKY_SLOPE = 0.01
"""Negative slope of InPlaceABN, the norm of the checkpoints published for torch 0.4."""


class ConvNormAct(nn.Sequential):
    """Convolution that keeps the map's size, BatchNorm2d, ReLU: [B, C, H, W] -> [B, out, H, W].

    The activation can be exchanged after construction with `set_activation`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        dilation: int = 1,
        bias: bool = True,
    ) -> None:
        padding = dilation * (kernel_size // 2)
        conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, bias=bias
        )
        norm = nn.BatchNorm2d(out_channels)
        super().__init__(OrderedDict(conv=conv, norm=norm, activation=nn.ReLU(inplace=True)))


class NormAct(nn.Sequential):
    """BatchNorm2d and ReLU alone; `set_activation` exchanges the activation."""

    def __init__(self, channels: int) -> None:
        norm = nn.BatchNorm2d(channels)
        super().__init__(OrderedDict(norm=norm, activation=nn.ReLU(inplace=True)))


def two_convs(in_channels: int, out_channels: int, *, bias: bool = True) -> nn.Sequential:
    """The transform that attention puts before queries and keys: two 1×1 `ConvNormAct`."""
    return nn.Sequential(
        ConvNormAct(in_channels, out_channels, bias=bias),
        ConvNormAct(out_channels, out_channels, bias=bias),
    )


class SegmentationHead(nn.Sequential):
    """k×k `ConvNormAct`, channel dropout, 1×1 classifier: [B, C, H, W] -> [B, K, H, W]."""

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        num_classes: int,
        *,
        kernel_size: int = 3,
        dropout: float = 0.1,
        conv_bias: bool = True,
        bias: bool = True,
    ) -> None:
        conv = ConvNormAct(in_channels, hidden_channels, kernel_size, bias=conv_bias)
        classifier = nn.Conv2d(hidden_channels, num_classes, 1, bias=bias)
        layers = OrderedDict(conv=conv, dropout=nn.Dropout2d(dropout), classifier=classifier)
        super().__init__(layers)


def set_activation(network: nn.Module, name: str) -> None:
    """Give every `ConvNormAct` and `NormAct` the activation "relu" or "leaky_relu" (slope 0.01)."""
    if name not in ("relu", "leaky_relu"):
        raise ValueError(f'activation must be "relu" or "leaky_relu", got {name!r}')
    for module in network.modules():
        if isinstance(module, (ConvNormAct, NormAct)):
            relu = name == "relu"
            module.activation = (
                nn.ReLU(inplace=True) if relu else nn.LeakyReLU(LEAKY_SLOPE, inplace=True)
            )
