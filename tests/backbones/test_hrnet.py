# SPDX-License-Identifier: MIT
import pytest
import torch

from openseg.backbones import create_backbone


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("hrnet_w18", 9_562_260),
        ("hrnet_w32", 29_305_536),
        ("hrnet_w48", 65_325_120),
        ("hrnet_w64", 115_697_600),
    ],
)
def test_parameters(name, count):
    with torch.device("meta"):
        assert sum(p.numel() for p in create_backbone(name).parameters()) == count


def test_one_map_of_stride_4():
    backbone = create_backbone("hrnet_w18", in_channels=4).eval()
    with torch.no_grad():
        maps = backbone(torch.empty(1, 4, 97, 64))
    assert [m.shape for m in maps] == [(1, 270, 25, 16)]
    assert backbone.channels == (270,)


def test_multi_grid_is_refused():
    with pytest.raises(ValueError, match="multi_grid"):
        create_backbone("hrnet_w18", multi_grid=[1, 2, 4])


def test_align_corners_reaches_the_exchanges():
    torch.manual_seed(0)
    backbone = create_backbone("hrnet_w18").eval()
    other = create_backbone("hrnet_w18", align_corners=False).eval()
    other.load_state_dict(backbone.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(backbone(images)[0][:, :18], other(images)[0][:, :18])


def test_hrnet2x_has_stride_2_and_up_to_five_branches():
    backbone = create_backbone("hrnet2x_w20", in_channels=4).eval()
    with torch.no_grad():
        maps = backbone(torch.empty(1, 4, 49, 32))
    assert [m.shape for m in maps] == [(1, 31 * 20, 25, 16)]
    assert [len(getattr(backbone, f"stage{n}")[0].branches) for n in (1, 2, 3, 4)] == [2, 3, 4, 5]
    assert [len(getattr(backbone, f"stage{n}")) for n in (1, 2, 3, 4)] == [1, 1, 4, 3]
    bottleneck = backbone.stage1[0].branches[1][3]
    assert bottleneck.conv1.weight.shape == (64, 256, 1, 1)
    assert bottleneck.downsample is None
