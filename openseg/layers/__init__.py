# SPDX-License-Identifier: MIT
"""Modules over `openseg.ops`: the context blocks and the convolutions that networks are made of."""

from openseg.layers.conv import ConvNormAct, SegmentationHead, set_activation
from openseg.layers.object_context import ObjectContext

__all__ = ["ConvNormAct", "ObjectContext", "SegmentationHead", "set_activation"]
