# SPDX-License-Identifier: MIT
import functools

import pytest
import torch

from openseg.ops import object_attention
from tests.ops.gradients import with_gradients
from tests.ops.oracle import LAYOUTS, laid_out
from tests.ops.test_object_attention import case
from tests.ops.triton.interpreted import check, check_compiled

attend = functools.partial(object_attention, backend="triton")


# B, D, H, W, K, Dv: one pixel, several blocks of pixels, channels and regions, no image
@pytest.mark.parametrize(
    ("shape", "layout"),
    [((1, 1, 1, 1, 1, 1), "contiguous"), ((0, 4, 3, 3, 2, 4), "channels_last")]
    + [((2, 13, 5, 7, 3, 6), layout) for layout in LAYOUTS]
    + [((1, 40, 3, 31, 19, 70), "channels_last"), ((1, 8, 9, 1, 150, 8), "contiguous")],
)
def test_error_budget(shape, layout):
    query, key, value = case(*shape, torch.float32)
    check(object_attention, [laid_out(query, layout), key.mT.contiguous().mT, value])


def test_reads_slices_of_channels_as_they_lie():
    query, key, value = case(1, 24, 5, 7, 3, 6, torch.float32)
    for layout in ("contiguous", "channels_last"):
        out = attend(laid_out(query, layout)[:, 8:16], key[..., 8:16], value)
        known = object_attention(query[:, 8:16].double(), key[..., 8:16].double(), value.double())
        torch.testing.assert_close(out.double(), known, rtol=1e-5, atol=1e-6)


def test_huge_scores_and_nan():
    query, key, value = case(1, 8, 5, 7, 3, 4, torch.float32)
    query = 1e4 * query
    query[0, 3, 2, 5] = float("nan")
    out = attend(query, key, value)
    assert out.isnan().sum() == 4
    assert out[0, :, 2, 5].isnan().all()
    strongest = torch.einsum("dhw,kd->hwk", query[0], key[0]).argmax(2)
    known = value[0][strongest].permute(2, 0, 1)
    others = ~out[0].isnan()
    torch.testing.assert_close(out[0][others], known[others])


def test_pixels_beyond_the_map_add_nothing():
    """Not even where a key is infinite: their scores, 0 · inf, are NaN."""
    query, key, value = case(1, 8, 5, 7, 3, 4, torch.float32)
    query[:, 0] = -1.0
    key[0, 1, 0] = float("inf")  # no pixel looks there
    mine, known = (
        with_gradients(functools.partial(object_attention, backend=backend), [query, key, value])
        for backend in ("triton", "reference")
    )
    assert mine[2].isfinite().all()
    for ours, expected in zip(mine, known, strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True)


def test_compiles_with_its_gradients():
    query, key, value = case(2, 4, 5, 7, 3, 6, torch.float32)
    check_compiled(attend, (laid_out(query, "channels_last"), key, value))


def test_opcheck():
    query, key, value = case(2, 4, 5, 3, 3, 6, torch.float32)
    operators = torch.ops.openseg_triton
    torch.library.opcheck(operators.object_attention.default, (query, key, value, 0.5))
    arguments = (torch.ones(2, 6, 5, 3), laid_out(query, "strided"), key, value, 0.5)
    torch.library.opcheck(operators.object_attention_backward.default, arguments)


def test_says_what_it_cannot_take():
    query, key, value = case(1, 4, 3, 3, 257, 4, torch.float32)
    with pytest.raises(RuntimeError, match="256 regions at most, got 257"):
        attend(query, key, value)
    with pytest.raises(RuntimeError, match="one dtype"):
        attend(query, key[:, :2].double(), value[:, :2])
