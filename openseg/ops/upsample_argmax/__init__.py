# SPDX-License-Identifier: MIT
"""The operator `upsample_argmax`: see docs/ops/upsample_argmax.md."""

from openseg.ops.upsample_argmax.api import upsample_argmax

__all__ = ["upsample_argmax"]
