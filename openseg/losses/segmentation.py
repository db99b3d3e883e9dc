# SPDX-License-Identifier: MIT
"""The training loss of all networks: cross entropy on the main logits and, weighted, on the others.

Logits come at feature resolution; the loss upsamples them to the size of the target.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from openseg.ops import Ohem, upsample_cross_entropy


class Logits(Protocol):
    """What a network returns: main [B, K, h, w], and further logits by name."""

    @property
    def main(self) -> Tensor: ...

    @property
    def aux(self) -> Mapping[str, Tensor]: ...


class SegmentationLoss(nn.Module):
    """Main cross entropy + Σ weight · auxiliary cross entropy.

    Args:
        aux_weights: a weight for each auxiliary output of the network, by its name; names that
            the network does not have do no harm.
        class_weights: K factors, one a class; the mean over pixels divides by their sum.
        ignore_index: label of the pixels without loss.
        align_corners: of the upsampling of the logits.
        label_smoothing: in [0, 1].
        ohem: online hard example mining on the main logits.
        ohem_aux: on the auxiliary logits too; the published networks have plain cross entropy
            there.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        aux_weights: Mapping[str, float] | None = None,
        class_weights: Sequence[float] | None = None,
        ignore_index: int = 255,
        align_corners: bool = True,
        label_smoothing: float = 0.0,
        ohem: Ohem | None = None,
        ohem_aux: bool = False,
    ) -> None:
        super().__init__()
        self.aux_weights = {"aux": 0.4} if aux_weights is None else dict(aux_weights)
        self.ignore_index = ignore_index
        self.align_corners = align_corners
        self.label_smoothing = label_smoothing
        self.ohem = ohem
        self.ohem_aux = ohem if ohem_aux else None
        weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, output: Logits, target: Tensor) -> dict[str, Tensor]:
        """Losses by name for target [B, H, W] (uint8 or int64): "loss" is their weighted sum.

        Raises:
            ValueError: the network has an auxiliary output without a weight.
        """
        unknown = output.aux.keys() - self.aux_weights.keys()
        if unknown:
            raise ValueError(
                f"no weight for the auxiliary outputs {sorted(unknown)}; "
                f"aux_weights has {sorted(self.aux_weights)}"
            )
        losses = {"main": self._cross_entropy(output.main, target, self.ohem)}
        total = losses["main"]
        for name, logits in output.aux.items():
            losses[name] = self._cross_entropy(logits, target, self.ohem_aux)
            total = total + self.aux_weights[name] * losses[name]
        return {"loss": total, **losses}

    def _cross_entropy(self, logits: Tensor, target: Tensor, ohem: Ohem | None) -> Tensor:
        return upsample_cross_entropy(
            logits,
            target,
            align_corners=self.align_corners,
            weight=self.class_weights,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            ohem=ohem,
        )
