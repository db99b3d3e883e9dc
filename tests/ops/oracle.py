# SPDX-License-Identifier: MIT
"""Helpers of the operator tests: layouts, and labels compared by their float64 margin."""

import torch
import torch.nn.functional as F

LAYOUTS = ("contiguous", "channels_last", "strided")


def laid_out(tensor, layout):
    """The same values of [B, K, h, w] in another memory layout."""
    if layout == "channels_last":
        return tensor.contiguous(memory_format=torch.channels_last)
    if layout == "strided":  # every second row and column of a larger tensor, NaN in between
        larger = tensor.new_full(
            (*tensor.shape[:2], 2 * tensor.shape[2], 2 * tensor.shape[3]), float("nan")
        )
        larger[:, :, ::2, 1::2] = tensor
        return larger[:, :, ::2, 1::2]
    return tensor.contiguous()


def upsampled(logits, size, align_corners):
    """float64 [B, K, H, W]."""
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=align_corners)


def check_labels(labels, logits, size, align_corners):
    """Each label's float64 value is the greatest but for rounding.

    Two float32 multiply-adds on values up to m, with weights rounded to float32, err by at most
    4 * 2^-24 * m each; the two compared values differ by twice that.
    """
    values = upsampled(logits, size, align_corners)
    best = values.max(1).values
    mine = values.gather(1, labels.long()[:, None])[:, 0]
    bound = 8 * 2.0**-24 * logits.double().abs().amax()
    assert (best - mine).max() <= bound
    exact = values.topk(min(2, values.shape[1]), 1).values
    clear = (exact[:, 0] - exact[:, -1] > bound) if values.shape[1] > 1 else best == best
    assert torch.equal(labels.long()[clear], values.argmax(1)[clear])
