# SPDX-License-Identifier: MIT
"""The operator `confusion_matrix`: see docs/ops/confusion_matrix.md."""

from openseg.ops.confusion_matrix.api import confusion_matrix

__all__ = ["confusion_matrix"]
