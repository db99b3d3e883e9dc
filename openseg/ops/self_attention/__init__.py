# SPDX-License-Identifier: MIT
from openseg.ops.self_attention.api import self_attention as self_attention
