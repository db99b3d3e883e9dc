# SPDX-License-Identifier: MIT
from openseg.ops.upsample_cross_entropy.api import upsample_cross_entropy as upsample_cross_entropy
