# SPDX-License-Identifier: MIT
"""What other code on the same thread sees of kernels that multiply on tiles (AMX)."""

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


def test_products_of_pytorch_are_those_of_before():
    """PyTorch's matrix products configure the tiles of a thread too, and need not do so each time."""
    torch.manual_seed(0)
    a, b = (torch.randn(300, 200, dtype=torch.bfloat16) for _ in range(2))
    query = torch.randn(1, 64, 20, 20, dtype=torch.bfloat16)
    product, context = a @ b.T, ops.self_attention(query, query, query)
    for _ in range(3):
        assert torch.equal(a @ b.T, product)
        assert torch.equal(ops.self_attention(query, query, query), context)


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
