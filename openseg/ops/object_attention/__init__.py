# SPDX-License-Identifier: MIT
from openseg.ops.object_attention.api import object_attention as object_attention
