# SPDX-License-Identifier: MIT
import pytest
import torch

from openseg.ops import interlaced_attention, self_attention

# B, D, Dv, H, W, groups
SHAPES = [
    (1, 1, 1, 1, 1, (1, 1)),
    (2, 4, 6, 6, 8, (2, 4)),
    (1, 4, 4, 9, 5, (3, 5)),
    (2, 3, 5, 16, 24, (8, 8)),
    (0, 3, 3, 8, 8, (8, 8)),
]


def case(b, d, dv, h, w, dtype=torch.float64):
    generator = torch.Generator().manual_seed(b + d + dv + h + w)
    shapes = (b, d, h, w), (b, d, h, w), (b, dv, h, w)
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]


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
    tensors = case(*sizes)
    out = interlaced_attention(*tensors, groups=groups, kind=kind)
    torch.testing.assert_close(out, by_hand(*tensors, groups, kind))


def test_one_group_of_all_pixels_is_plain_self_attention():
    tensors = case(2, 4, 6, 5, 3)
    known = self_attention(*tensors, 0.7)
    long = interlaced_attention(*tensors, 0.7, groups=(1, 1), kind="long")
    short = interlaced_attention(*tensors, 0.7, groups=(5, 3), kind="short")
    torch.testing.assert_close(long, known)
    torch.testing.assert_close(short, known)


@pytest.mark.parametrize("kind", ["long", "short"])
def test_gradients(kind):
    tensors = [t.requires_grad_() for t in case(1, 2, 3, 4, 6)]
    assert torch.autograd.gradcheck(
        lambda q, k, v: interlaced_attention(q, k, v, groups=(2, 3), kind=kind), tensors
    )


def test_layouts_agree():
    tensors = case(2, 4, 6, 6, 8)
    last = [t.to(memory_format=torch.channels_last) for t in tensors]
    out = interlaced_attention(*last, groups=(2, 4))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, interlaced_attention(*tensors, groups=(2, 4)))


@pytest.mark.parametrize("kind", ["long", "short"])
def test_compiles_without_a_break(kind):
    tensors = case(2, 4, 6, 8, 8)
    options = {"groups": (4, 2), "kind": kind}
    compiled = torch.compile(interlaced_attention, fullgraph=True, backend="aot_eager")
    known = interlaced_attention(*tensors, **options)
    torch.testing.assert_close(compiled(*tensors, **options), known)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"groups": (8, 8)}, r"multiple of groups \(8, 8\), got \(6, 8\); pad"),
        ({"groups": (0, 8)}, "multiple of groups"),
        ({"groups": (2, 2), "kind": "wide"}, "wide"),
        ({"groups": (2, 2), "backend": "fortran"}, "fortran"),
    ],
)
def test_options_that_do_not_fit(options, text):
    with pytest.raises(ValueError, match=text):
        interlaced_attention(*case(1, 4, 4, 6, 8), **options)
