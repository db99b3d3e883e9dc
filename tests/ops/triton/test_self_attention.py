# SPDX-License-Identifier: MIT
import functools
import importlib

import pytest
import torch

from openseg.ops import interlaced_attention, self_attention
from tests.ops.gradients import with_gradients
from tests.ops.oracle import LAYOUTS, laid_out
from tests.ops.triton.interpreted import check, check_compiled


def case(b, d, h, w, dv):
    generator = torch.Generator().manual_seed(b + d + h + w + dv)
    return [torch.randn(b, c, h, w, generator=generator) for c in (d, d, dv)]


def on_itself(operator):
    return lambda x, value, **options: operator(x, x, value, **options)


attend = functools.partial(self_attention, backend="triton")
LONG = functools.partial(interlaced_attention, groups=(2, 3), kind="long")
SHORT = functools.partial(interlaced_attention, groups=(6, 3), kind="short")


# B, D, H, W, Dv: one pixel, several blocks, more channels than a shared key has room for, no image
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1, 1), (2, 3, 11, 7, 5), (1, 2, 2, 3, 300), (0, 4, 3, 3, 2)]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_error_budget(shape, layout):
    query, key, value = (laid_out(t, layout) for t in case(*shape))
    check(self_attention, (query, key, value))
    check(on_itself(self_attention), (query, value))


def test_channels_that_leave_room_for_8_rows():
    check(self_attention, case(1, 257, 5, 5, 257))


@pytest.mark.parametrize(
    ("operator", "layout"), [(LONG, "channels_last"), (SHORT, "contiguous"), (SHORT, "strided")]
)
def test_groups_keep_the_error_budget(operator, layout):
    query, key, value = (laid_out(t, layout) for t in case(1, 4, 6, 9, 5))
    check(operator, (query, key, value))
    check(on_itself(operator), (query, value))


@pytest.mark.parametrize("kind", ["long", "short"])
def test_groups_end_at_the_border_of_a_map_without_padding(kind):
    operator = functools.partial(interlaced_attention, groups=(3, 2), kind=kind, mask_pad=True)
    check(operator, case(2, 3, 7, 5, 4))


def test_groups_of_several_blocks():
    check(functools.partial(LONG, groups=(2, 1)), case(1, 3, 14, 9, 5))


def test_groups_may_be_more_than_a_grid_has_rows(monkeypatch):
    grids = []
    monkeypatch.setattr(
        importlib.import_module("openseg.ops.self_attention.triton"),
        "launch",
        lambda kernel, grid, *arguments, **options: grids.append(grid),
    )
    operator = functools.partial(SHORT, groups=(1, 1), backend="triton")
    with_gradients(operator, case(1, 1, 300, 300, 1))
    assert len(grids) == 4
    assert max(max(grid[1:]) for grid in grids) < 1 << 16


def test_scores_far_below_zero_and_nan():
    """Zeros that fill the blocks up would have more weight than all scores."""
    query, key, value = case(1, 3, 7, 5, 2)
    query, key = query.abs() + 100, key.abs() - 10
    known = self_attention(query.double(), key.double(), value.double())
    query[0, 1, 2, 3] = float("nan")
    out = attend(query, key, value)
    assert out[0, :, 2, 3].isnan().all()
    others = ~out.isnan()
    assert others.sum() == out.numel() - 2
    # scores of up to 1700 are rounded
    torch.testing.assert_close(out[others].double(), known[others], rtol=1e-3, atol=1e-3)
    query[0, 1, 2, 3] = 100
    for operator, tensors in ((attend, (query, key, value)), (on_itself(attend), (query, value))):
        assert all(t.isfinite().all() for t in with_gradients(operator, tensors))


@pytest.mark.parametrize("operator", [self_attention, on_itself(LONG)])
def test_compiles_with_its_gradients(operator):
    tensors = [laid_out(t, "channels_last") for t in case(1, 4, 4, 6, 4)]
    if operator is not self_attention:
        tensors = tensors[1:]
    check_compiled(functools.partial(operator, backend="triton"), tensors)


@pytest.mark.parametrize(
    ("name", "shared"), [("self_attention", False), ("interlaced_attention", True)]
)
def test_opcheck(name, shared):
    query, key, value = case(1, 3, 2, 3, 2)
    key = None if shared else key
    options = (0.5,) if name == "self_attention" else (0.5, [2, 3], "short")
    forward = getattr(torch.ops.openseg_triton, name).default
    torch.library.opcheck(forward, (query, key, value, *options))
    known = forward(query, key, value, *options)
    backward = getattr(torch.ops.openseg_triton, f"{name}_backward").default
    torch.library.opcheck(backward, (known[0], query, key, value, *known, *options))


def test_says_what_it_cannot_take():
    with pytest.raises(RuntimeError, match="512 channels at most, got 513 and 2"):
        self_attention(*case(1, 513, 1, 1, 2), backend="triton")
