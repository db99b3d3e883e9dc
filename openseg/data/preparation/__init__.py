# SPDX-License-Identifier: MIT
"""What published files have to become before a data set can read them: an image and a PNG each."""

from openseg.data.preparation.coco_stuff_10k import convert_coco_stuff_10k
from openseg.data.preparation.conversion import Conversion
from openseg.data.preparation.pascal_context import convert_pascal_context
from openseg.data.preparation.pascal_voc import convert_pascal_voc

__all__ = [
    "Conversion",
    "convert_coco_stuff_10k",
    "convert_pascal_context",
    "convert_pascal_voc",
]
