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
from openseg.layers.object_context import IdealObjectContext, ObjectContext, ideal_regions
from openseg.layers.pooling import PyramidPooling
from openseg.layers.self_attention import BaseObjectContext, PyramidObjectContext, SelfAttention
from openseg.layers.upsample import upsample_like

__all__ = [
    "AtrousBaseObjectContext",
    "AtrousObjectContext",
    "AtrousPyramidPooling",
    "BaseObjectContext",
    "ConvNormAct",
    "IdealObjectContext",
    "InPlaceABN",
    "InterlacedSelfAttention",
    "NormAct",
    "ObjectContext",
    "PyramidObjectContext",
    "PyramidPooling",
    "SegmentationHead",
    "SelfAttention",
    "ideal_regions",
    "set_activation",
    "upsample_like",
]
