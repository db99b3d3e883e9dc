# SPDX-License-Identifier: MIT
"""Pure functions on tensors, each a folder with a reference and its kernels.

`torch.ops.openseg.*` is private: arguments are checked, backends chosen and gradients added here.
"""

from openseg.ops.confusion_matrix import confusion_matrix
from openseg.ops.upsample_argmax import upsample_argmax

__all__ = ["confusion_matrix", "upsample_argmax"]
