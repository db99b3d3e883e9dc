# SPDX-License-Identifier: MIT
import functools

import pytest
import torch

from openseg import _ext
from openseg.ops import interlaced_attention, self_attention
from tests.ops.attention_cases import arguments, check_kernel, maps
from tests.ops.gradients import at_each_thread_count, check_graphs, with_gradients
from tests.ops.oracle import LAYOUTS, laid_out

needs_kernels = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))
either_key = pytest.mark.parametrize("shared", [False, True], ids=["own key", "key is query"])
either_kind = pytest.mark.parametrize("kind", ["long", "short"])

# B, D, Dv, H, W, groups
SHAPES = [
    (1, 1, 1, 1, 1, (1, 1)),
    (2, 4, 6, 6, 8, (2, 4)),
    (1, 4, 4, 9, 5, (3, 5)),
    (2, 3, 5, 16, 24, (8, 8)),
    (0, 3, 3, 8, 8, (8, 8)),
]


def by_hand(query, key, value, groups, kind):
    """Self-attention among the pixels of each group, found by slicing the map."""
    out = torch.full_like(value, torch.nan)
    p, q = groups
    height, width = value.shape[2:]
    if kind == "long":
        slices = [(slice(i, None, p), slice(j, None, q)) for i in range(p) for j in range(q)]
    else:
        slices = [
            (slice(i, i + p), slice(j, j + q))
            for i in range(0, height, p)
            for j in range(0, width, q)
        ]
    for rows, columns in slices:
        part = [x[:, :, rows, columns] for x in (query, key, value)]
        out[:, :, rows, columns] = self_attention(*part)
    return out


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["long", "short"])
def test_equals_attention_in_slices_of_the_map(shape, kind):
    *sizes, groups = shape
    tensors = maps(*sizes)
    out = interlaced_attention(*tensors, groups=groups, kind=kind)
    torch.testing.assert_close(out, by_hand(*tensors, groups, kind))


def membership(size, group, kind):
    """Which group each place of a side is in: as the side lies centred in a multiple."""
    places = torch.arange(size) + -size % group // 2
    return places % group if kind == "long" else places // group


@either_kind
@pytest.mark.parametrize("size", [(7, 10), (2, 3), (9, 1), (8, 5)])
def test_masked_padding_takes_no_part(size, kind):
    """Against attention among all pixels, where those of other groups are masked."""
    query, key, value = maps(2, 4, 3, *size)
    out = interlaced_attention(query, key, value, groups=(4, 3), kind=kind, mask_pad=True)
    rows, columns = (membership(n, g, kind) for n, g in zip(size, (4, 3), strict=True))
    groups = (rows[:, None] * 100 + columns).flatten()
    scores = 0.5 * torch.einsum("bcn,bcm->bnm", query.flatten(2), key.flatten(2))
    scores[:, groups[:, None] != groups] = -torch.inf
    known = torch.einsum("bcm,bnm->bcn", value.flatten(2), scores.softmax(2))
    torch.testing.assert_close(out.flatten(2), known)


@either_kind
def test_masked_padding_of_a_multiple_changes_nothing(kind):
    tensors, options = maps(1, 4, 3, 6, 8), {"groups": (3, 4), "kind": kind}
    masked = interlaced_attention(*tensors, **options, mask_pad=True)
    torch.testing.assert_close(masked, interlaced_attention(*tensors, **options))


def test_one_group_of_all_pixels_is_plain_self_attention():
    tensors = maps(2, 4, 6, 5, 3)
    known = self_attention(*tensors, 0.7)
    long = interlaced_attention(*tensors, 0.7, groups=(1, 1), kind="long")
    short = interlaced_attention(*tensors, 0.7, groups=(5, 3), kind="short")
    torch.testing.assert_close(long, known)
    torch.testing.assert_close(short, known)


@pytest.mark.parametrize("kind", ["long", "short"])
def test_gradients(kind):
    tensors = [t.requires_grad_() for t in maps(1, 2, 3, 4, 6)]
    for options in ({"groups": (2, 3)}, {"groups": (3, 8), "mask_pad": True}):
        attend = functools.partial(interlaced_attention, kind=kind, **options)
        assert torch.autograd.gradcheck(attend, tensors)


def test_layouts_agree():
    tensors = maps(2, 4, 6, 6, 8)
    last = [t.to(memory_format=torch.channels_last) for t in tensors]
    out = interlaced_attention(*last, groups=(2, 4))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, interlaced_attention(*tensors, groups=(2, 4)))


@pytest.mark.parametrize("kind", ["long", "short"])
def test_compiles_without_a_break(kind):
    tensors = maps(2, 4, 6, 8, 8)
    options = {"groups": (4, 2), "kind": kind}
    compiled = torch.compile(interlaced_attention, fullgraph=True, backend="aot_eager")
    known = interlaced_attention(*tensors, **options)
    torch.testing.assert_close(compiled(*tensors, **options), known)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"groups": (8, 8)}, r"multiple of groups \(8, 8\), got \(6, 8\); pad.*mask_pad"),
        ({"groups": (0, 8)}, r"1 at least, got \(0, 8\)"),
        ({"groups": (2, 2), "kind": "wide"}, "wide"),
        ({"groups": (2, 2), "backend": "fortran"}, "fortran"),
    ],
)
def test_options_that_do_not_fit(options, text):
    with pytest.raises(ValueError, match=text):
        interlaced_attention(*maps(1, 4, 4, 6, 8), **options)


# B, D, Dv, H, W, groups: one pixel, groups of other shapes than squares, of 8 x 8, of more pixels
# than a block has, one group, no image
KERNEL_SHAPES = [
    (1, 1, 1, 1, 1, (1, 1)),
    (1, 20, 36, 9, 10, (3, 5)),
    (2, 13, 5, 16, 24, (8, 8)),
    (1, 6, 9, 20, 76, (20, 19)),
    (1, 16, 7, 6, 5, (1, 1)),
    (0, 3, 3, 8, 8, (8, 8)),
]


@needs_kernels
@either_key
@either_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", KERNEL_SHAPES)
def test_kernel_keeps_the_error_budget(shape, layout, dtype, kind, shared):
    *sizes, groups = shape
    tensors = maps(*sizes, dtype, layout)
    check_kernel(interlaced_attention, tensors, shared, groups=groups, kind=kind)


@needs_kernels
@either_key
@either_kind
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("size", [(7, 11), (3, 2), (20, 1)])
def test_kernel_masks_padding(size, layout, kind, shared):
    tensors = maps(2, 12, 9, *size, torch.float32, layout)
    options = {"groups": (4, 3), "kind": kind, "mask_pad": True}
    check_kernel(interlaced_attention, tensors, shared, **options)


@needs_kernels
@either_kind
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_returns_the_layout_of_the_query_and_reads_slices(layout, kind):
    query, key, value = maps(2, 24, 6, 8, 12, torch.float32, layout)
    options = {"groups": (4, 3), "kind": kind}
    tensors = query[:, 8:16], key[:, 3:11], value
    function, given = arguments(interlaced_attention, tensors, False, backend="cpp", **options)
    out, *gradients = with_gradients(function, given)
    known = interlaced_attention(*[t.double() for t in tensors], **options)
    torch.testing.assert_close(out.double(), known, rtol=1e-5, atol=1e-6)
    for result in (out, *gradients):
        assert result.stride() == laid_out(result, layout).stride()


@needs_kernels
@either_key
def test_kernel_is_bit_equal_under_any_number_of_threads(shared):
    function, tensors = arguments(
        interlaced_attention,
        maps(1, 20, 24, 48, 40, torch.float32),
        shared,
        backend="cpp",
        groups=(2, 5),
    )
    first, *others = at_each_thread_count(lambda: with_gradients(function, tensors))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@needs_kernels
def test_kernel_keeps_nan_in_its_group():
    query, key, value = maps(1, 8, 4, 6, 8, torch.float32)
    key[0, 3, 2, 5] = float("nan")
    out = interlaced_attention(query, key, value, groups=(3, 4), kind="short", backend="cpp")
    assert out[..., :3, 4:].isnan().all()
    assert out.isnan().sum() == 4 * 3 * 4


@needs_kernels
@pytest.mark.parametrize(("kind", "shared"), [("long", False), ("short", True)])
def test_opcheck(kind, shared):
    for layout in LAYOUTS:
        query, key, value = maps(2, 4, 6, 4, 6, torch.float32, layout)
        given, options = (query, None if shared else key, value), (0.5, [2, 3], kind)
        torch.library.opcheck(torch.ops.openseg.interlaced_attention, (*given, *options))
        out, statistics = torch.ops.openseg.interlaced_attention(*given, *options)
        torch.library.opcheck(
            torch.ops.openseg.interlaced_attention_backward,
            (torch.ones_like(out), *given, out, statistics, *options),
        )


@needs_kernels
@pytest.mark.parametrize(
    ("layout", "kind", "shared"),
    [("contiguous", "long", False), ("channels_last", "short", True)],
)
def test_kernel_compiles_with_its_gradients_and_exports(layout, kind, shared):
    tensors = maps(2, 4, 6, 8, 6, torch.float32, layout)
    options = {"groups": (4, 2), "kind": kind, "backend": "cpp"}
    check_graphs(*arguments(interlaced_attention, tensors, shared, **options))


@needs_kernels
def test_kernel_by_name_says_what_it_cannot_take():
    query, key, value = maps(1, 4, 4, 4, 4)
    with pytest.raises(RuntimeError, match="float64"):
        interlaced_attention(query, key, value, groups=(2, 2), backend="cpp")
    tensors = query.float(), key.bfloat16(), value.float()
    with pytest.raises(RuntimeError, match="one dtype"):
        interlaced_attention(*tensors, groups=(2, 2), backend="cpp")
