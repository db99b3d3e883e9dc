# SPDX-License-Identifier: MIT
"""The layer of `ops.inplace_abn`, with the arguments and the keys of the package `inplace_abn`.

Its gain is |weight| + eps. The weights of a batch norm, which are told by `num_batches_tracked`,
are translated when they are loaded; a gain below eps, as any negative one, is refused.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from openseg import ops


class InPlaceABN(nn.Module):
    """Batch norm and activation that keep only their output for the gradient.

    [B, C, H, W] -> [B, C, H, W]: `activation((|weight| + eps) · x̂ + bias)` (Rota Bulò, Porzi,
    Kontschieder: In-Place Activated BatchNorm for Memory-Optimized Training of DNNs, CVPR 2018).
    BatchNorm2d and an activation keep two maps; this keeps one, as far as nothing else keeps x.
    """

    running_mean: Tensor | None
    running_var: Tensor | None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        activation: str = "leaky_relu",
        activation_param: float = 0.01,
        group: Any | Literal["world"] = None,
        *,
        keep: str = "auto",
        inplace: str = "never",
    ) -> None:
        """As `nn.BatchNorm2d`, and as `ops.inplace_abn`, which tells of the others.

        activation: "leaky_relu" (negative slope `activation_param`), "elu" (α), "identity", or
            "relu", which has no inverse and keeps the input instead.
        group: the processes whose batches are normalised as one: a process group, or "world".
        """
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.activation = activation
        self.activation_param = activation_param
        self.group = group
        self.keep = keep
        self.inplace = inplace
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        tracked = track_running_stats
        self.register_buffer("running_mean", torch.zeros(num_features) if tracked else None)
        self.register_buffer("running_var", torch.ones(num_features) if tracked else None)

    def forward(self, x: Tensor) -> Tensor:
        return ops.inplace_abn(
            x,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            training=self.training or self.running_mean is None,
            momentum=self.momentum,
            eps=self.eps,
            activation=self.activation,
            activation_param=self.activation_param,
            group=self.group,
            keep=self.keep,
            inplace=self.inplace,
        )

    def extra_repr(self) -> str:
        parameter = "" if self.activation in ("identity", "relu") else f"({self.activation_param})"
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"activation={self.activation}{parameter}"
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        if prefix + "num_batches_tracked" in state_dict:
            del state_dict[prefix + "num_batches_tracked"]
            self._translate_batch_norm(state_dict, prefix + "weight", others[-1])
        super()._load_from_state_dict(state_dict, prefix, *others)

    def _translate_batch_norm(
        self, state_dict: dict[str, Any], key: str, errors: list[str]
    ) -> None:
        if key not in state_dict:
            return
        weight = state_dict[key] - self.eps
        wrong = (weight < 0).nonzero().flatten().tolist()
        if wrong:
            gains = ", ".join(f"{i} ({float(state_dict[key][i]):.3g})" for i in wrong[:5])
            more = ", …" if len(wrong) > 5 else ""
            errors.append(
                f"{key} is of a batch norm, and InPlaceABN, whose gain is |weight| + {self.eps}, "
                f"has none as that of channels {gains}{more}: keep BatchNorm2d there, or turn the "
                "sign of these channels in the layers before and after"
            )
        state_dict[key] = weight
