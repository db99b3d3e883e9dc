# SPDX-License-Identifier: MIT
from openseg.ops.interlaced_attention.api import interlaced_attention as interlaced_attention
