# SPDX-License-Identifier: MIT
"""Object-contextual representations (Yuan, Chen, Wang: OCR, ECCV 2020, section 3.2).

The norms of the key and value transforms see the K regions of each image alone, so in training
their statistics come from B × K samples.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openseg import ops
from openseg.layers.conv import ConvNormAct, two_convs


class ObjectContext(nn.Module):
    """Pixels attend to the representations of K object regions (OCR: Yuan, Chen, Wang 2020).

    Regions are gathered with a softmax over the pixels of each class's logits; the context that
    pixels attend to is projected back to `in_channels`, concatenated as [context, features] and
    fused by a 1×1 convolution.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        out_channels: int | None = None,
        *,
        dropout: float = 0.05,
        bias: bool = True,
        value_bias: bool = True,
    ) -> None:
        """`out_channels=None` leaves out the fusion: the result is the context, `in_channels`.
        `value_bias`: of the convolutions before and after the attention's sum.
        """
        super().__init__()
        self.query = two_convs(in_channels, key_channels, bias=bias)
        self.key = two_convs(in_channels, key_channels, bias=bias)
        self.value = ConvNormAct(in_channels, key_channels, bias=value_bias)
        self.project = ConvNormAct(key_channels, in_channels, bias=value_bias)
        self.fuse = None
        if out_channels is not None:
            self.fuse = ConvNormAct(2 * in_channels, out_channels, bias=bias)
            self.dropout = nn.Dropout2d(dropout)

    def forward(self, features: Tensor, logits: Tensor) -> Tensor:
        """features [B, in, H, W], logits [B, K, H, W] of the soft regions -> [B, out, H, W]."""
        regions = ops.spatial_gather(features, logits)
        key, value = self._of_regions(self.key, regions), self._of_regions(self.value, regions)
        context = self.project(ops.object_attention(self.query(features), key, value))
        if self.fuse is None:
            return context
        return self.dropout(self.fuse(torch.cat([context, features], dim=1)))

    @staticmethod
    def _of_regions(transform: nn.Module, regions: Tensor) -> Tensor:
        """[B, K, in] -> [B, K, out] by a transform of maps."""
        maps = regions.transpose(1, 2).unsqueeze(3)  # [B, in, K, 1]
        return transform(maps).squeeze(3).transpose(1, 2)


class IdealObjectContext(ObjectContext):
    """Object context with the regions of the ground truth: what OCR could gain (its section 4.2).

    A region is described by the mean over its pixels, and a pixel attends to its own region. With
    `background` the mean value of all other regions is a second context: [context, background,
    features] are fused. Without `gather` the regions are described by the logits as in
    `ObjectContext`, and pixels that are ignored attend to the last class, as published; without
    `attend` pixels attend to the ideal regions by their features. The transforms of queries and
    keys are there in any case, so that weights of `ObjectContext` fit.
    """

    def __init__(
        self,
        in_channels: int,
        key_channels: int,
        out_channels: int,
        *,
        dropout: float = 0.05,
        gather: bool = True,
        attend: bool = True,
        background: bool = False,
    ) -> None:
        super().__init__(in_channels, key_channels, out_channels, dropout=dropout)
        if background and not attend:
            raise ValueError("background needs attend=True: it is what pixels do not attend to")
        self.gather = gather
        self.attend = attend
        self.background = background
        if background:
            self.fuse = ConvNormAct(3 * in_channels, out_channels)

    def forward(self, features: Tensor, logits: Tensor, regions: Tensor | None = None) -> Tensor:
        """features [B, in, H, W], logits [B, K, H, W], regions [B, K + 1, H, W] of `ideal_regions`
        -> [B, out, H, W]. The logits matter without `gather` alone.
        """
        if regions is None:
            raise ValueError("regions: None given; expected those of ideal_regions")
        assert self.fuse is not None
        regions = regions.to(features.dtype)
        if self.gather:
            described = F.normalize(regions.flatten(2), p=1.0, dim=2) @ features.flatten(2).mT
        else:
            described = ops.spatial_gather(features, logits)
            last = regions[:, -2:].sum(dim=1, keepdim=True)
            regions = torch.cat([regions[:, :-2], last], dim=1)
        value = self._of_regions(self.value, described)
        if self.attend:
            parts = [regions, 1 - regions] if self.background else [regions]
            contexts = [self._mean_of_own(part, value) for part in parts]
        else:
            key = self._of_regions(self.key, described)
            contexts = [ops.object_attention(self.query(features), key, value)]
        maps = [*(self.project(context) for context in contexts), features]
        return self.dropout(self.fuse(torch.cat(maps, dim=1)))

    @staticmethod
    def _mean_of_own(regions: Tensor, value: Tensor) -> Tensor:
        """The mean of the values [B, R, D] that each pixel's regions [B, R, H, W] have."""
        weights = F.normalize(regions, p=1.0, dim=1)
        return (value.mT @ weights.flatten(2)).unflatten(2, regions.shape[2:])


def ideal_regions(
    labels: Tensor, size: tuple[int, int], num_classes: int, ignore_index: int = 255
) -> Tensor:
    """Labels [B, H, W] at a smaller size and one-hot, float32 [B, K + 1, *size].

    The labels are those of the nearest pixels; what is ignored is a region of its own, the last.
    """
    small = F.interpolate(labels[:, None].float(), size, mode="nearest")[:, 0].long()
    small = small.masked_fill(small == ignore_index, num_classes)
    return F.one_hot(small, num_classes + 1).permute(0, 3, 1, 2).float()
