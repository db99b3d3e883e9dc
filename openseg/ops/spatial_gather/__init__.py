# SPDX-License-Identifier: MIT
from openseg.ops.spatial_gather.api import spatial_gather as spatial_gather
