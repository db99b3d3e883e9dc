# SPDX-License-Identifier: MIT
import functools

import pytest
import torch

from openseg.ops import spatial_gather
from tests.ops.oracle import LAYOUTS, laid_out
from tests.ops.test_spatial_gather import case
from tests.ops.triton.interpreted import check, check_compiled

gather = functools.partial(spatial_gather, backend="triton")


# B, C, H, W, K: one pixel, several parts, blocks of channels and of regions, no image
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((1, 1, 1, 1, 1), "contiguous")]
    + [((2, 13, 11, 9, 3), layout) for layout in LAYOUTS]
    + [((1, 140, 3, 31, 19), "channels_last"), ((1, 8, 5, 1, 150), "contiguous")],
)
def test_error_budget(shape, layout):
    tensors = [laid_out(t, layout) for t in case(*shape, torch.float32)]
    check(functools.partial(spatial_gather, scale=0.7), tensors)


def test_empty_batch():
    tensors = case(0, 4, 3, 3, 2, torch.float32)
    assert gather(*tensors).shape == (0, 2, 4)


def test_whole_parts_of_minus_infinity_and_nan_in_its_region():
    features, logits = case(1, 6, 20, 20, 3, torch.float32)
    logits[:, 0, :12] = -float("inf")
    logits[0, 1, 2, 5] = float("nan")
    out = gather(features, logits)
    known = spatial_gather(features.double(), logits.double())
    assert out[:, 1].isnan().all()
    torch.testing.assert_close(out[:, ::2].double(), known[:, ::2], rtol=1e-5, atol=1e-6)


def test_huge_logits():
    features, logits = case(1, 4, 5, 3, 2, torch.float32)
    check(spatial_gather, (features, 1e4 + logits))


def test_compiles_with_its_gradients():
    tensors = [laid_out(t, "channels_last") for t in case(2, 4, 5, 7, 3, torch.float32)]
    check_compiled(gather, tensors)


def test_opcheck():
    features, logits = case(2, 4, 5, 3, 3, torch.float32)
    operators = torch.ops.openseg_triton
    torch.library.opcheck(operators.spatial_gather.default, (features, logits, 0.5))
    known = operators.spatial_gather(features, logits, 0.5)
    arguments = (torch.ones(2, 3, 4), laid_out(features, "strided"), logits, *known, 0.5)
    torch.library.opcheck(operators.spatial_gather_backward.default, arguments)
