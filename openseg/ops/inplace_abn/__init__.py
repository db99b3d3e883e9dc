# SPDX-License-Identifier: MIT
from openseg.ops.inplace_abn.api import inplace_abn as inplace_abn
