# SPDX-License-Identifier: MIT
"""Loading of weights: our checkpoints, and those of the published codes under their own names."""

from openseg.weights.conventions import CONVENTIONS
from openseg.weights.inert import read_without_objects
from openseg.weights.loading import LoadReport, count_classes, load_read, load_weights
from openseg.weights.reading import (
    METADATA_KEY,
    Weights,
    load_plain,
    read_safetensors,
    read_weights,
)

__all__ = [
    "CONVENTIONS",
    "METADATA_KEY",
    "LoadReport",
    "Weights",
    "count_classes",
    "load_plain",
    "load_read",
    "load_weights",
    "read_safetensors",
    "read_weights",
    "read_without_objects",
]
