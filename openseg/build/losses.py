# SPDX-License-Identifier: MIT
"""From `config.loss` to the criterion of a network."""

import difflib
from collections.abc import Collection
from functools import partial
from typing import Any

from torch import nn

from openseg.config import Config
from openseg.config.schema import LossConfig
from openseg.data import DatasetInfo
from openseg.errors import ConfigError
from openseg.losses import (
    CLASS_WEIGHTS,
    RMI,
    CrossEntropy,
    Dice,
    EdgeCrossEntropy,
    Focal,
    Lovasz,
    SegFixLoss,
    SegmentationLoss,
    WeightedSum,
)
from openseg.models import SegmentationModel
from openseg.ops import Ohem


def build_criterion(config: Config, model: SegmentationModel, info: DatasetInfo) -> nn.Module:
    """The losses of all outputs of the network."""
    loss = config.loss
    if "segfix" in loss.main or "direction" in model.aux_outputs:
        return _segfix_loss(config, model, info)
    if not loss.aux_weights.keys() >= set(model.aux_outputs):
        raise ConfigError(
            f"loss.aux_weights: {loss.aux_weights} given, a weight for each of the further "
            f"outputs of {config.model.name} expected: {', '.join(model.aux_outputs)}"
        )
    shared: dict[str, Any] = {
        "ignore_index": info.ignore_index,
        "align_corners": model.align_corners,
    }
    weights = _class_weights(loss, info)
    ohem = None
    if loss.ohem_thresh is not None:
        ohem = Ohem(loss.ohem_thresh, loss.ohem_min_kept, loss.ohem_variant)
    entropy = partial(CrossEntropy, weights, label_smoothing=loss.label_smoothing, **shared)
    return SegmentationLoss(
        main=_main_loss(loss, partial(entropy, ohem=ohem), weights, shared),
        aux=entropy(ohem=ohem if loss.ohem_aux else None),
        aux_weights=loss.aux_weights,
        own={"edge": EdgeCrossEntropy(**shared)},
    )


def _segfix_loss(config: Config, model: SegmentationModel, info: DatasetInfo) -> nn.Module:
    if "segfix" not in config.loss.main:
        raise ConfigError(
            f"loss.main: {config.loss.main} given, {{segfix: 1}} expected for {config.model.name}: "
            "it learns borders and directions, not classes"
        )
    if "direction" not in model.aux_outputs:
        raise ConfigError(
            f"model.name: {config.model.name} given, segfix expected with loss.main={{segfix: 1}}: "
            "the loss wants logits of borders and directions"
        )
    return SegFixLoss(info.ignore_index, model.align_corners)


def _main_loss(loss: LossConfig, entropy: Any, weights: Any, shared: dict[str, Any]) -> nn.Module:
    makers: dict[str, Any] = {
        "cross_entropy": entropy,
        "focal": partial(Focal, weights, gamma=loss.focal_gamma, **shared),
        "dice": partial(Dice, **shared),
        "lovasz": partial(Lovasz, **shared),
        "rmi": partial(
            RMI, weight=loss.rmi_weight, radius=loss.rmi_radius, stride=loss.rmi_stride, **shared
        ),
    }
    for name in loss.main:
        _require("loss.main", name, makers)
    return WeightedSum(*((weight, makers[name]()) for name, weight in loss.main.items()))


def _class_weights(loss: LossConfig, info: DatasetInfo) -> tuple[float, ...] | None:
    key, weights = "loss.class_weights", loss.class_weights
    if loss.class_weights_of is not None:
        key = "loss.class_weights_of"
        _require(key, loss.class_weights_of, CLASS_WEIGHTS)
        weights = list(CLASS_WEIGHTS[loss.class_weights_of])
    if weights is None:
        return None
    if len(weights) != info.num_classes:
        raise ConfigError(
            f"{key}: {len(weights)} numbers given, {info.num_classes} "
            f"expected: one for each class of {info.name} ({', '.join(info.classes)})"
        )
    return tuple(weights)


def _require(key: str, name: str, known: Collection[str]) -> None:
    """ConfigError, with the nearest ones, unless the name is known."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or sorted(known)
        raise ConfigError(f"{key}: there is no {name!r}; did you mean {' or '.join(near)}?")
