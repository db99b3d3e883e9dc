# SPDX-License-Identifier: MIT
"""Kernels that multiply on tiles (AMX): what lies beyond the end of a map."""

import pytest
import torch

from openseg import _ext, ops

pytestmark = [
    pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason)),
    pytest.mark.skipif(
        _ext.reason is None and torch.ops.openseg.cpu_capability() != "amx",
        reason="this processor has no tiles, or OPENSEG_CPU names another instruction set",
    ),
]


@pytest.mark.parametrize("channels", [1, 33, 64])
def test_what_is_not_finite_stays_where_it_is(channels):
    """Rows and columns that fill up the last tiles are zero, whatever lay in their memory."""
    torch.manual_seed(0)
    features = torch.randn(2, channels, 5, 7, dtype=torch.bfloat16)
    logits = torch.randn(2, 3, 5, 7, dtype=torch.bfloat16)
    features[0, 0] = float("nan")
    for _ in range(3):
        regions = ops.spatial_gather(features, logits)
        assert regions[0].isnan().sum() == 3
        assert regions[1].isfinite().all()
