# SPDX-License-Identifier: MIT
"""Results of many megabytes are written past the cache: the same numbers as of each image alone."""

import pytest
import torch

from openseg import _ext, ops
from tests.ops.gradients import random_gradient
from tests.ops.oracle import laid_out

pytestmark = pytest.mark.skipif(_ext.reason is not None, reason=str(_ext.reason))

LARGE = 8 << 20  # bytes, of all images; each alone has less
IMAGES = 8


def large_maps(dtype, layout, side, *channels):
    generator = torch.Generator().manual_seed(side)
    shapes = [(IMAGES, c, side, side) for c in channels]
    maps = [torch.randn(s, generator=generator).to(dtype) for s in shapes]
    return [laid_out(m, layout) for m in maps]


def gradients_of_each(function, maps, grad):
    """The result, and the gradients of the maps."""
    leaves = [m.detach().requires_grad_() for m in maps]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def check_images_alone(function, maps):
    grad = random_gradient(function(*maps).shape).to(maps[0].dtype)
    together = gradients_of_each(function, maps, grad)
    assert max(t.nbytes for t in together) >= LARGE > max(t.nbytes for t in together) / IMAGES
    for i in range(IMAGES):
        image = slice(i, i + 1)
        alone = gradients_of_each(function, [m[image] for m in maps], grad[image])
        for one, all_images in zip(alone, together, strict=True):
            torch.testing.assert_close(all_images[image], one, rtol=0, atol=0)


# 250 channels, and 47 x 47 pixels, do not fill whole lines.
@pytest.mark.parametrize(("channels", "side"), [(256, 48), (250, 48), (256, 47)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
class TestEqualsImagesAlone:
    def test_object_attention(self, channels, side, dtype, layout):
        generator = torch.Generator().manual_seed(0)
        regions = torch.randn(1, 5, channels, generator=generator).to(dtype)
        check_images_alone(
            lambda query: ops.object_attention(
                query, *[regions.expand(len(query), -1, -1)] * 2, backend="cpp"
            ),
            large_maps(dtype, layout, side, channels),
        )

    def test_spatial_gather(self, channels, side, dtype, layout):
        check_images_alone(
            lambda features, logits: ops.spatial_gather(features, logits, backend="cpp"),
            large_maps(dtype, layout, side, channels, 5),
        )

    @pytest.mark.parametrize("kind", ["long", "short"])
    def test_interlaced_attention(self, channels, side, dtype, layout, kind):
        check_images_alone(
            lambda query, key, value: ops.interlaced_attention(
                query, key, value, groups=(4, 8), kind=kind, mask_pad=True, backend="cpp"
            ),
            large_maps(dtype, layout, side, 16, 16, channels),
        )

    def test_inplace_abn(self, channels, side, dtype, layout):
        generator = torch.Generator().manual_seed(0)
        mean, bias = torch.randn(2, channels, generator=generator)
        variance, weight = 0.5 + torch.rand(2, channels, generator=generator)
        check_images_alone(
            lambda x: ops.inplace_abn(
                x, weight, bias, mean, variance, training=False, backend="cpp"
            ),
            large_maps(dtype, layout, side, channels),
        )
