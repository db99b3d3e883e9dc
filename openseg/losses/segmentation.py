# SPDX-License-Identifier: MIT
"""The training loss of a network: that of the main logits and, weighted, those of the others.

Logits come at feature resolution; each loss upsamples them to the size of the target.
"""

from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import Protocol

from torch import Tensor, nn

from openseg.losses.cross_entropy import CrossEntropy


class Logits(Protocol):
    """What a network returns: main [B, K, h, w], and further logits by name."""

    @property
    def main(self) -> Tensor: ...

    @property
    def aux(self) -> Mapping[str, Tensor]: ...


class SegmentationLoss(nn.Module):
    """Main loss + Σ weight · auxiliary loss.

    A loss is a module (logits [B, K, h, w], target [B, H, W]) -> scalar.

    Args:
        main: loss of the main logits; cross entropy by default.
        aux: loss of every auxiliary output, cross entropy by default: the published networks have
            plain cross entropy there, whatever the main loss.
        aux_weights: a weight for each auxiliary output of the network, by its name; names that
            the network does not have do no harm.
        own: losses of single auxiliary outputs in place of `aux`, by name, such as
            {"edge": EdgeCrossEntropy()}.
    """

    def __init__(
        self,
        main: nn.Module | None = None,
        aux: nn.Module | None = None,
        aux_weights: Mapping[str, float] | None = None,
        own: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.main = main or CrossEntropy()
        self.aux = aux or CrossEntropy()
        self.aux_weights = {"aux": 0.4} if aux_weights is None else dict(aux_weights)
        self.own = nn.ModuleDict(own)

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
        losses = {"main": self.main(output.main, target)}
        total = losses["main"]
        for name, logits in output.aux.items():
            loss = self.own[name] if name in self.own else self.aux  # noqa: SIM401, it has no get
            losses[name] = loss(logits, target)
            total = total + self.aux_weights[name] * losses[name]
        return {"loss": total, **losses}


class WeightedSum(nn.Module):
    """Σ weight · loss of the same logits, of (weight, loss) pairs."""

    def __init__(self, *terms: tuple[float, nn.Module]) -> None:
        super().__init__()
        self.weights = [weight for weight, _ in terms]
        self.losses = nn.ModuleList(loss for _, loss in terms)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits [B, K, h, w] and target [B, H, W] (uint8 or int64)."""
        values = [
            w * loss(logits, target) for w, loss in zip(self.weights, self.losses, strict=True)
        ]
        return reduce(add, values)
