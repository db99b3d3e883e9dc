# SPDX-License-Identifier: MIT
"""What all context blocks share, and the pyramid and ideal ones by hand."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from openseg import layers, ops
from openseg.layers import (
    BaseObjectContext,
    IdealObjectContext,
    ObjectContext,
    PyramidObjectContext,
    SelfAttention,
    ideal_regions,
)

BLOCKS = {
    "ObjectContext": lambda c: layers.ObjectContext(c, 4, 6),
    "AtrousObjectContext": lambda c: layers.AtrousObjectContext(c, 4, 6),
    "BaseObjectContext": lambda c: layers.BaseObjectContext(c, 4, 6),
    "AtrousBaseObjectContext": lambda c: layers.AtrousBaseObjectContext(c, 4, 6),
    "PyramidObjectContext": lambda c: layers.PyramidObjectContext(c, 4, 6),
    "InterlacedSelfAttention": lambda c: layers.InterlacedSelfAttention(c, 4, 6, mask_pad=c == 4),
    "PyramidPooling": lambda c: layers.PyramidPooling(c, 6),
    "AtrousPyramidPooling": lambda c: layers.AtrousPyramidPooling(c, 6),
}


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize(("channels", "size"), [(5, (33, 35)), (4, (34, 36)), (3, (8, 9))])
def test_blocks_keep_the_size_of_any_map(name, channels, size):
    assert name in layers.__all__
    torch.manual_seed(0)
    block = BLOCKS[name](channels)
    inputs = [torch.randn(2, channels, *size)]
    if name in ("ObjectContext", "AtrousObjectContext"):
        inputs.append(torch.randn(2, 3, *size))
    out = block(*inputs)
    assert out.shape == (2, 6, *size)
    out.square().mean().backward()
    for key, parameter in block.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert "[B, " in type(block).__doc__ + (type(block).forward.__doc__ or "")
    assert re.search(r"20\d\d", type(block).__doc__), "the paper"


def randomize(module):
    """The projections of contexts start at zero: give them values."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def test_contexts_of_several_sizes_are_summed():
    torch.manual_seed(0)
    block = randomize(BaseObjectContext(5, 4, 6, sizes=(1, 2, 3, 6)))
    x = torch.randn(1, 5, 13, 14, dtype=torch.float64)
    total = 0
    for level, size in zip(block.attention, (1, 2, 3, 6), strict=True):
        small = F.max_pool2d(x, size)
        context = ops.self_attention(level.query(small), level.key(small), level.value(small))
        context = F.interpolate(
            level.project(context), (13, 14), mode="bilinear", align_corners=True
        )
        total = total + context
    torch.testing.assert_close(block(x), block.fuse(torch.cat([total, x], 1)))


def test_interlaced_attention_without_its_padding():
    """The option changes nothing where nothing is padded; elsewhere no zero is attended to."""
    torch.manual_seed(0)
    block = randomize(layers.InterlacedSelfAttention(5, 4, 6, groups=(4, 4)))
    masked = layers.InterlacedSelfAttention(5, 4, 6, groups=(4, 4), mask_pad=True).double().eval()
    masked.load_state_dict(block.state_dict())
    even, odd = (torch.randn(1, 5, *size, dtype=torch.float64) for size in [(8, 12), (9, 13)])
    torch.testing.assert_close(masked(even), block(even))
    context = odd
    for stage, kind in ((masked.long_range, "long"), (masked.short_range, "short")):
        maps = stage.query(context), stage.key(context), stage.value(context)
        attended = ops.interlaced_attention(*maps, groups=(4, 4), kind=kind, mask_pad=True)
        context = stage.project(attended)
    torch.testing.assert_close(masked(odd), masked.fuse(torch.cat([odd, context], 1)))
    assert not torch.allclose(masked(odd), block(odd))


def test_blocks_of_a_map_attend_to_themselves():
    torch.manual_seed(0)
    attention = randomize(SelfAttention(5, 4, 4, blocks=3))
    x = torch.randn(2, 5, 11, 9, dtype=torch.float64)
    whole = SelfAttention(5, 4, 4).double().eval()
    whole.load_state_dict(attention.state_dict())
    found = attention(x)
    for rows in (slice(0, 3), slice(3, 6), slice(6, 11)):  # the last one takes what is left
        for columns in (slice(0, 3), slice(3, 6), slice(6, 9)):
            block = (slice(None), slice(None), rows, columns)
            torch.testing.assert_close(found[block], whole(x[block]))


def test_a_map_smaller_than_its_blocks_is_one():
    attention = randomize(SelfAttention(5, 4, 4, blocks=6))
    whole = SelfAttention(5, 4, 4).double().eval()
    whole.load_state_dict(attention.state_dict())
    x = torch.randn(1, 5, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(attention(x), whole(x))


def test_the_pyramid_joins_the_widened_map_and_its_levels():
    block = randomize(PyramidObjectContext(5, 4, 6, blocks=(1, 2)))
    x = torch.randn(1, 5, 6, 7, dtype=torch.float64)
    known = torch.cat([block.widen(x), *(level(x) for level in block.levels)], dim=1)
    assert known.shape[1] == 4 * 5
    torch.testing.assert_close(block(x), block.fuse(known))
    with torch.device("meta"):
        published = PyramidObjectContext(512, 256, 512)
    level = (512 * 256 + 3 * 256) + 2 * (512 * 512 + 512)  # query with norm; value, projection
    width = 4 * 512
    rest = 512 * width + 3 * width + 2 * width * 512 + 3 * 512
    assert sum(p.numel() for p in published.parameters()) == 4 * level + rest


def test_ideal_regions_are_the_nearest_labels():
    labels = torch.tensor([[[0, 9, 1, 9], [9, 9, 9, 9], [255, 9, 2, 9], [9, 9, 9, 9]]])
    regions = ideal_regions(labels, (2, 2), 3)
    assert regions.argmax(1).tolist() == [[[0, 1], [3, 2]]]
    assert regions.sum(1).eq(1).all()
    assert regions.shape == (1, 4, 2, 2)


@pytest.mark.parametrize("background", [False, True])
def test_ideal_context_is_the_value_of_the_mean_of_the_own_region(background):
    torch.manual_seed(0)
    block = randomize(IdealObjectContext(5, 4, 6, background=background))
    labels = torch.tensor([[[0, 0, 2], [2, 255, 2]]])
    features = torch.randn(1, 5, 2, 3, dtype=torch.float64)
    regions = ideal_regions(labels, (2, 3), 3)
    own = torch.tensor([[0, 0, 2], [2, 3, 2]])
    means = torch.stack(
        [features[0, :, own == k].mean(1) if (own == k).any() else torch.zeros(5) for k in range(4)]
    )  # [4, 5]; region 1 is empty
    value = block.value(means.T[None, :, :, None])[0, :, :, 0]  # [4 channels, 4 regions]
    contexts = [block.project(value[:, own][None])]
    if background:
        others = (value.sum(1)[:, None, None] - value[:, own]) / 3
        contexts.append(block.project(others[None]))
    known = block.fuse(torch.cat([*contexts, features], 1))
    logits = torch.full((1, 3, 2, 3), torch.nan, dtype=torch.float64)  # they have no part in it
    torch.testing.assert_close(block(features, logits, regions), known)
    with pytest.raises(ValueError, match="expected those of ideal_regions"):
        block(features, logits)


def test_ideal_context_without_its_attention_has_no_background():
    with pytest.raises(ValueError, match="background needs attend=True"):
        IdealObjectContext(5, 4, 6, attend=False, background=True)


def test_ideal_context_takes_the_weights_of_the_other():
    block, ideal = ObjectContext(5, 4, 6), IdealObjectContext(5, 4, 6)
    assert not any(ideal.load_state_dict(block.state_dict()))
