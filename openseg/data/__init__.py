# SPDX-License-Identifier: MIT
"""Data sets, transforms, the sampler, and pictures of labels.

A data set is anything with `info`, `__len__` and `load(index) -> Sample`; nothing is cached.
"""

from openseg.data import drawing, palettes
from openseg.data.base import Dataset, DatasetInfo, Sample, open_image
from openseg.data.borders import BorderMasks, BorderOffsets, BorderTransform
from openseg.data.datasets import (
    ADE20K,
    LIP,
    CamVid,
    Cityscapes,
    COCOStuff10K,
    ContextScenes,
    FolderDataset,
    PairedDataset,
    PascalContext,
    PascalVOC,
)
from openseg.data.samplers import ResumableSampler
from openseg.data.transforms import EvalTransform, Normalize, TrainSet, TrainTransform

__all__ = [
    "ADE20K",
    "LIP",
    "BorderMasks",
    "BorderOffsets",
    "BorderTransform",
    "COCOStuff10K",
    "CamVid",
    "Cityscapes",
    "ContextScenes",
    "Dataset",
    "DatasetInfo",
    "EvalTransform",
    "FolderDataset",
    "Normalize",
    "PairedDataset",
    "PascalContext",
    "PascalVOC",
    "ResumableSampler",
    "Sample",
    "TrainSet",
    "TrainTransform",
    "drawing",
    "open_image",
    "palettes",
]
