# SPDX-License-Identifier: MIT
"""Bilinear upsampling and cross entropy in plain torch, the oracle of every backend.

It computes in float32 at least, and every step has a static shape: what does not count is masked.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Ohem(NamedTuple):
    """Online hard example mining: only pixels whose own class has a low probability count.

    A pixel is hard below the probability `thresh`, or below that of the `min_kept`-th hardest pixel
    of the batch where that is higher. The two published codes differ:

    - "openseg" (openseg.pytorch) keeps p < limit, and the mean is over pixels, whatever their class
      weights. The first pixel of the batch takes part even where it is ignored, as class 0 without
      loss: so the published code avoids an empty set.
    - "ocnet" (OCNet.pytorch, HRNet) keeps p <= limit, and everything if there are no more than
      `min_kept` pixels; the mean divides by the class weights of the kept.
    """

    thresh: float = 0.7
    min_kept: int = 100_000
    variant: str = "openseg"


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
    ohem: Ohem | None,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """The loss, and int64 [number of labels out of range, position of the first]."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    classes = logits.shape[1]
    target = target.long()
    wrong = (target != ignore_index) & ((target < 0) | (target >= classes))
    counted = (target != ignore_index) & ~wrong
    label = torch.where(counted, target, 0)
    weight = logits.new_ones(classes, dtype=dtype) if weight is None else weight.to(dtype)

    log_p = _upsample(logits.to(dtype), target.shape[1:], align_corners).log_softmax(1)
    nll = -log_p.gather(1, label.unsqueeze(1)).squeeze(1)
    factor = weight[label] * counted
    loss = weight[label] * nll
    if label_smoothing > 0:
        uniform = -(weight.view(-1, 1, 1) * log_p).mean(1)
        loss = (1 - label_smoothing) * loss + label_smoothing * uniform
    if ohem is not None:
        entered = counted
        if ohem.variant == "openseg":
            entered = torch.cat([counted.new_ones(1), counted.flatten()[1:]])[: counted.numel()]
            entered = entered.view_as(counted)
        kept = entered & _hard(nll.detach(), entered, ohem)
        factor = kept.to(dtype) if ohem.variant == "openseg" else factor * kept
        counted = counted & kept
    loss = torch.where(counted, loss, 0)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        total = factor.sum()
        loss = loss / torch.where(total > 0, total, 1)
    first = torch.cat([wrong.new_zeros(1), wrong.flatten()]).int().argmax() - 1
    return loss, torch.stack([wrong.sum(), first.clamp(min=0)])


def _upsample(logits: Tensor, size: torch.Size, align_corners: bool) -> Tensor:
    if logits.shape[0] == 0:  # F.interpolate refuses an empty batch
        return logits[:, :, :1, :1].expand(-1, -1, *size)
    return F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)


def _hard(nll: Tensor, entered: Tensor, ohem: Ohem) -> Tensor:
    """Which pixels are hard, given the negative log-probability of the true class, all [B, H, W].

    A NaN is as hard as can be: it belongs into the loss.
    """
    probability = torch.exp(-nll).nan_to_num(0.0)
    if probability.numel() == 0:
        return entered
    ordered = torch.where(entered, probability, 2.0).flatten().sort().values
    count = entered.sum()
    if ohem.variant == "openseg":
        rank = (count - 1).clamp(min=0, max=ohem.min_kept)
        return probability < ordered[rank.view(1)].clamp(min=ohem.thresh)
    limit = ordered.new_full((), ohem.thresh)  # filled on the device: a copy would be waited for
    if ohem.min_kept > 0:
        kth = ordered[min(ohem.min_kept, ordered.shape[0]) - 1]
        limit = torch.where(count <= ohem.min_kept, 2.0, torch.maximum(limit, kth))
    return probability <= limit
