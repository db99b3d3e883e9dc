# SPDX-License-Identifier: MIT
import torch

from openseg.layers import ConvNormAct, ObjectContext


def test_regions_without_order():
    """Context does not depend on the order in which the classes come."""
    torch.manual_seed(0)
    block = ObjectContext(8, 4, 6).double().eval()
    features = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    logits = torch.randn(2, 5, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(block(features, logits), block(features, logits.flip(1)))


def test_one_region_is_the_same_context_everywhere():
    torch.manual_seed(0)
    block = ObjectContext(8, 4).eval()
    context = block(torch.randn(1, 8, 5, 7), torch.randn(1, 1, 5, 7))
    assert context.shape == (1, 8, 5, 7)
    torch.testing.assert_close(context, context[:, :, :1, :1].expand_as(context))


def test_convolutions_keep_the_size_whatever_the_dilation():
    x = torch.randn(2, 3, 7, 9)
    for kernel_size, dilation in [(1, 1), (3, 1), (3, 12)]:
        assert ConvNormAct(3, 4, kernel_size, dilation=dilation)(x).shape == (2, 4, 7, 9)
