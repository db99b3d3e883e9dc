# SPDX-License-Identifier: MIT
"""The data sets, a file each."""

from openseg.data.datasets.ade20k import ADE20K
from openseg.data.datasets.camvid import CamVid
from openseg.data.datasets.cityscapes import Cityscapes
from openseg.data.datasets.coco_stuff_10k import COCOStuff10K
from openseg.data.datasets.folder import FolderDataset
from openseg.data.datasets.lip import LIP
from openseg.data.datasets.paired import PairedDataset
from openseg.data.datasets.pascal_context import PascalContext
from openseg.data.datasets.pascal_voc import PascalVOC
from openseg.data.datasets.scenes import ContextScenes

__all__ = [
    "ADE20K",
    "LIP",
    "COCOStuff10K",
    "CamVid",
    "Cityscapes",
    "ContextScenes",
    "FolderDataset",
    "PairedDataset",
    "PascalContext",
    "PascalVOC",
]
