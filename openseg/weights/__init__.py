# SPDX-License-Identifier: MIT
"""Loading of weights: our checkpoints, and those of the published codes under their own names."""

from openseg.weights.loading import LoadReport, load_weights
from openseg.weights.reading import read_state_dict

__all__ = ["LoadReport", "load_weights", "read_state_dict"]
