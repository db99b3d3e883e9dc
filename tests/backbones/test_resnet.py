# SPDX-License-Identifier: MIT
import pytest
import torch

from openseg.backbones import create_backbone, list_backbones


def sizes(name, side, **options):
    with torch.device("meta"):
        maps = create_backbone(name, **options)(torch.empty(1, 3, side, side))
    return [m.shape[-1] for m in maps]


def dilations(layer):
    """Of every 3×3 convolution, block by block."""
    convs = [m for m in layer.modules() if isinstance(m, torch.nn.Conv2d)]
    return [conv.dilation[0] for conv in convs if conv.kernel_size == (3, 3)]


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet50c", 23_631_808), ("resnet101c", 42_623_936), ("resnet101", 42_500_160)],
)
def test_parameters(name, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in create_backbone(name).parameters()) == count


@pytest.mark.parametrize(
    ("side", "known"),
    [
        (512, [129, 65, 65, 65]),
        (1024, [257, 129, 129, 129]),
        (769, [193, 97, 97, 97]),
        (473, [119, 60, 60, 60]),
    ],
)
def test_map_sizes(side, known):
    assert sizes("resnet18c", side) == known
    assert sizes("resnet18c", side, output_stride=16)[2:] == [(known[2] + 1) // 2] * 2


@pytest.mark.parametrize("name", [n for n in list_backbones() if n.startswith("resnet")])
def test_channels_are_those_announced(name):
    with torch.device("meta"):
        backbone = create_backbone(name, in_channels=4)
        maps = backbone(torch.empty(1, 4, 33, 33))
    assert tuple(m.shape[1] for m in maps) == backbone.channels


def test_a_stage_without_its_stride_keeps_half_of_its_dilation_where_the_stride_was():
    body = create_backbone("resnet50c")
    assert dilations(body.layer2) == [1] * 4
    assert dilations(body.layer3) == [1] + [2] * 5
    assert dilations(body.layer4) == [2, 4, 4]
    body = create_backbone("resnet50c", output_stride=16)
    assert dilations(body.layer3) == [1] * 6
    assert dilations(body.layer4) == [1, 2, 2]
    basic = create_backbone("resnet18c")
    assert dilations(basic.layer3) == [1, 2, 2, 2]
    assert dilations(basic.layer4) == [2, 4, 4, 4]


def test_uniform_dilation_makes_no_exception_of_the_first_block():
    body = create_backbone("resnet50c", uniform_dilation=True)
    assert dilations(body.layer3) == [2] * 6
    assert dilations(body.layer4) == [4] * 3


def test_multi_grid_multiplies_the_dilation_of_the_last_stage():
    body = create_backbone("resnet50c", output_stride=16, multi_grid=[1, 2, 4])
    assert dilations(body.layer4) == [1, 4, 8]
    body = create_backbone("resnet50c", multi_grid=[2, 2, 2])
    assert dilations(body.layer4) == [4, 8, 8]


@pytest.mark.parametrize(
    ("options", "text"),
    [({"output_stride": 4}, "8 or 16, got 4"), ({"multi_grid": [1, 2, 4]}, "each of the 2 blocks")],
)
def test_options_that_do_not_fit(options, text):
    with pytest.raises(ValueError, match=text):
        create_backbone("resnet18", **options)
