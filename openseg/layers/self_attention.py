# SPDX-License-Identifier: MIT
"""Object context by self-attention over all pixels (Yuan, Wang: OCNet, 2018, sections 3.2, 3.3).

The output projection starts at zero, so a fresh block passes its input through the fusion alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openseg import ops
from openseg.layers.conv import ConvNormAct, two_convs
from openseg.layers.upsample import upsample_like


class SelfAttention(nn.Module):
    """Context of each pixel from all pixels: [B, C, H, W] -> [B, C, H, W].

    `scale` > 1 takes the maximum over squares of that side first and upsamples the context after.
    In the `shared` form, that of the OCNet original, query and key are one map and one convolution
    makes it; otherwise each has its own two. `blocks` > 1 cuts the map into so many rows and
    columns of equal blocks, the last ones taking what is left, and each block attends to itself.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        value_channels: int,
        *,
        shared: bool = False,
        scale: int = 1,
        blocks: int = 1,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.blocks = blocks
        self.align_corners = align_corners
        one_or_two = ConvNormAct if shared else two_convs
        self.query = one_or_two(in_channels, key_channels)
        self.key = None if shared else two_convs(in_channels, key_channels)
        self.value = nn.Conv2d(in_channels, value_channels, 1)
        self.project = nn.Conv2d(value_channels, in_channels, 1)
        for parameter in self.project.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        small = F.max_pool2d(x, self.scale) if self.scale > 1 else x
        query = self.query(small)
        key = query if self.key is None else self.key(small)
        context = self.project(self._attend(query, key, self.value(small)))
        if self.scale > 1:
            context = upsample_like(context, x, self.align_corners)
        return context

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.blocks == 1:
            return ops.self_attention(query, key, value)
        rows, columns = (_cuts(length, self.blocks) for length in query.shape[2:])
        bands = []
        for row in rows:
            q, k, v = (x[:, :, row] for x in (query, key, value))
            blocks = [ops.self_attention(q[..., c], k[..., c], v[..., c]) for c in columns]
            bands.append(torch.cat(blocks, dim=3))
        return torch.cat(bands, dim=2)


def _cuts(length: int, count: int) -> list[slice]:
    """A length in `count` equal parts, the last one longer; fewer where they would be empty."""
    step = length // count
    starts = [i * step for i in range(count if step else 1)]
    return [slice(start, end) for start, end in zip(starts, [*starts[1:], length], strict=True)]


class SummedContext(nn.ModuleList):
    """The sum of what modules make of one map."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([module(x) for module in self]).sum(dim=0)


class BaseObjectContext(nn.Module):
    """[context, x], fused by a 1×1 convolution (OCNet: Yuan, Wang 2018): [B, C, H, W] ->
    [B, out, H, W].

    `sizes` are those of squares whose maxima attend; the contexts of several are summed.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        out_channels: int,
        *,
        sizes: Sequence[int] = (1,),
        shared: bool = False,
        dropout: float = 0.05,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        attentions = [
            SelfAttention(
                in_channels,
                key_channels,
                key_channels,
                shared=shared,
                scale=size,
                align_corners=align_corners,
            )
            for size in sizes
        ]
        self.attention = attentions[0] if len(sizes) == 1 else SummedContext(attentions)
        self.fuse = ConvNormAct(2 * in_channels, out_channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fuse(torch.cat([self.attention(x), x], dim=1)))


class PyramidObjectContext(nn.Module):
    """Pyramid-OC (Yuan, Wang: OCNet, 2018): [x, contexts of the map cut into blocks], fused.

    [B, C, H, W] -> [B, out, H, W].

    For n of `blocks` each of n × n blocks attends to itself, with values as wide as x; x is widened
    to as many channels as all contexts have. `shared` is as in `SelfAttention`.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        out_channels: int,
        *,
        blocks: Sequence[int] = (1, 2, 3, 6),
        shared: bool = True,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(
            SelfAttention(in_channels, key_channels, in_channels, shared=shared, blocks=n)
            for n in blocks
        )
        width = len(blocks) * in_channels
        self.widen = ConvNormAct(in_channels, width)
        self.fuse = ConvNormAct(2 * width, out_channels)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.widen(x), *(level(x) for level in self.levels)]
        return self.dropout(self.fuse(torch.cat(maps, dim=1)))
