# SPDX-License-Identifier: MIT
"""Modules over `openseg.ops`: the context blocks and the convolutions that networks are made of."""

from openseg.layers.atrous import (
    AtrousBaseObjectContext,
    AtrousObjectContext,
    AtrousPyramidPooling,
)
from openseg.layers.conv import ConvNormAct, NormAct, SegmentationHead, set_activation
from openseg.layers.inplace_abn import InPlaceABN
from openseg.layers.interlaced import InterlacedSelfAttention
from openseg.layers.object_context import ObjectContext
from openseg.layers.pooling import PyramidPooling
from openseg.layers.self_attention import BaseObjectContext, SelfAttention
from openseg.layers.upsample import upsample_like

__all__ = [
    "AtrousBaseObjectContext",
    "AtrousObjectContext",
    "AtrousPyramidPooling",
    "BaseObjectContext",
    "ConvNormAct",
    "InPlaceABN",
    "InterlacedSelfAttention",
    "NormAct",
    "ObjectContext",
    "PyramidPooling",
    "SegmentationHead",
    "SelfAttention",
    "set_activation",
    "upsample_like",
]
