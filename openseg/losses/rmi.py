# SPDX-License-Identifier: MIT
"""Region mutual information (Zhao et al., NeurIPS 2019) as openseg.pytorch trains with it.

It compares neighbourhoods, not pixels, and works on sigmoids of the full-size logits. An image
without labels adds nothing here; in the published code it adds a constant.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openseg.losses.full_size import one_hot, upsample

_POSITIVE = 1e-3  # on the diagonal of covariances, which makes them invertible
_LEAST_PROBABILITY = 1e-6
_LEAST_ROOT = 1e-8  # added to the diagonal of the Cholesky factor, before the logarithm


class RMI(nn.Module):
    """λ · binary cross entropy + (1 - λ) · (the log-variance of labels given predictions).

    Both maps are max-pooled by `stride`; each place is then a vector of its `radius`² neighbours.
    The second part is ½ log det(Y - C P⁻¹ Cᵀ) / radius², of the covariances of labels Y,
    predictions P and both C, summed over classes and averaged over images; all of it in float64.

    weight: λ.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        align_corners: bool = True,
        weight: float = 0.5,
        radius: int = 3,
        stride: int = 3,
    ) -> None:
        super().__init__()
        if not 0 <= weight <= 1 or radius < 1 or stride < 1:
            raise ValueError(
                "weight must be in [0, 1], radius and stride at least 1, got "
                f"{weight}, {radius} and {stride}"
            )
        self.ignore_index = ignore_index
        self.align_corners = align_corners
        self.weight = weight
        self.radius = radius
        self.stride = stride

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits [B, K, h, w] and target [B, H, W] (uint8 or int64).

        Raises ValueError for a target too small to have a neighbourhood after pooling.
        """
        least = self.stride * (self.radius - 1) + 1
        if min(target.shape[1:]) < least:
            raise ValueError(
                f"target is {target.shape[2]}×{target.shape[1]}; RMI of radius {self.radius} and "
                f"stride {self.stride} needs at least {least}×{least} pixels"
            )
        scores = upsample(logits, target.shape[1:], self.align_corners)
        truth, counted = one_hot(target, scores, self.ignore_index)
        pixelwise = F.binary_cross_entropy_with_logits(scores, truth, counted, reduction="sum")
        pixelwise = pixelwise / (counted.sum() + 1)
        regions = self._regions(truth, scores.sigmoid() * counted + _LEAST_PROBABILITY)
        labelled = counted.amax((1, 2, 3))
        regional = (regions.sum(1) * labelled).mean()
        return self.weight * pixelwise + (1 - self.weight) * regional.to(pixelwise.dtype)

    def _regions(self, truth: Tensor, probability: Tensor) -> Tensor:
        """The second part for each image and class, float64 [B, K], of maps [B, K, H, W]."""
        y, p = self._neighbourhoods(truth), self._neighbourhoods(probability)
        diagonal = _POSITIVE * torch.eye(self.radius**2, dtype=y.dtype, device=y.device)
        root = torch.linalg.cholesky(p @ p.mT + diagonal)
        explained = torch.linalg.solve_triangular(root, p @ y.mT, upper=False)
        left = y @ y.mT - explained.mT @ explained + diagonal
        roots = torch.linalg.cholesky(left).diagonal(dim1=-2, dim2=-1)
        return (roots + _LEAST_ROOT).log().sum(-1) / self.radius**2

    def _neighbourhoods(self, maps: Tensor) -> Tensor:
        """Pooled maps as centred vectors, float64 [B, K, radius², places]."""
        pooled = F.max_pool2d(maps, self.stride, padding=self.stride // 2).double()
        windows = pooled.unfold(2, self.radius, 1).unfold(3, self.radius, 1)
        vectors = windows.flatten(4).flatten(2, 3).mT
        return vectors - vectors.mean(-1, keepdim=True)
