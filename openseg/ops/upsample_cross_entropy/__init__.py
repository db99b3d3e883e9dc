# SPDX-License-Identifier: MIT
"""The operator `upsample_cross_entropy`: see docs/ops/upsample_cross_entropy.md."""

from openseg.ops.upsample_cross_entropy.api import Ohem, upsample_cross_entropy

__all__ = ["Ohem", "upsample_cross_entropy"]
