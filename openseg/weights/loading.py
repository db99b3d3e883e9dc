# SPDX-License-Identifier: MIT
"""Foreign and own weights into a network, all of them or an error.

A checkpoint with InPlaceABN changes more than names: its gain is |w| + 1e-5, and the activation of
its heads is LeakyReLU(0.01), which the network is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from openseg.data import Normalize
from openseg.errors import CheckpointError
from openseg.layers import set_activation
from openseg.weights.conventions import published_normalize
from openseg.weights.key_maps import KeyMap, imagenet_maps, key_maps
from openseg.weights.reading import Weights, read_weights, unwrap

_ABN_EPS = 1e-5
_PREFIXES = ("module.", "model.", "_orig_mod.")
_COUNTER = "num_batches_tracked"
_CLASSIFIERS = tuple(f"{head}classifier.weight" for head in ("", "head.", "mask_head."))


@dataclass
class LoadReport:
    """What `load_weights` did.

    loaded: keys of the network that were filled. adapted: in words, what was changed on the way.
    ignored: keys of the checkpoint that belong to no network. inplace_abn: the norms were that.
    normalize: of the images that the weights were trained on, where that is known. warnings: in
    words, what may be wrong although every tensor fits.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    inplace_abn: bool = False
    normalize: Normalize | None = None
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded, names of {self.source}"]
        lines += [f"adapted: {text}" for text in self.adapted]
        if self.normalize is not None:
            lines.append(f"its images: {self.normalize}")
        lines += [f"warning: {text}" for text in self.warnings]
        if self.ignored:
            lines.append(f"ignored: {', '.join(self.ignored)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module,
    checkpoint: str | Path | Mapping[str, Tensor],
    source: str = "auto",
) -> LoadReport:
    """Fill a network from a checkpoint of this package or of a published code.

    Args:
        model: a network of `create_model`; any other module takes checkpoints with its own names.
        checkpoint: a file (`torch.save` or `.safetensors`), or a state dict.
        source: whose names the checkpoint has: "openseg" (ours), "openseg.pytorch",
            "ocnet.pytorch", "hrnet" (HRNet-Semantic-Segmentation), "mmsegmentation", or "auto"
            for any of these. "imagenet" is a classification network, which fills the backbone
            alone.

    Returns:
        A `LoadReport`; print it.

    Raises:
        CheckpointError: the file cannot be read, or a key is missing, unexpected or of another
            shape; the message names every one, and the network is left as it was.
    """
    if isinstance(checkpoint, (str, Path)):
        name, weights = str(checkpoint), read_weights(checkpoint)
    else:
        name, weights = "the state dict", unwrap(checkpoint, "the state dict")
    return load_read(model, weights, name, source)


def load_read(model: nn.Module, weights: Weights, name: str, source: str = "auto") -> LoadReport:
    """`load_weights` of what was read already; `name` is for the error's text."""
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    state_dict = _without_prefixes(weights.state_dict)
    own = model.state_dict()
    names = max(_candidates(model, source), key=lambda names: _fitting(state_dict, names, own))
    tensors, report = _translate(state_dict, names)
    variant = _arguments(model).get("variant")
    _check(own, tensors, name, names, variant)
    report.loaded = [key for key in own if key in tensors]
    report.normalize = _normalize(weights.meta, names.source, _arguments(model))
    model.load_state_dict(tensors, strict=False)
    if report.inplace_abn:
        # A backbone alone has no arguments to keep it in.
        use = getattr(model, "use_activation", lambda activation: set_activation(model, activation))
        use("leaky_relu")
    return report


def count_classes(network: str, weights: Weights) -> int | None:
    """K, from the shape of the main classifier of one of our networks; None where there is none."""
    for names in [KeyMap("openseg", {"*": "*"}), *key_maps(network)]:
        for key, tensor in _without_prefixes(weights.state_dict).items():
            if _our_key(key, names) in _CLASSIFIERS:
                return tensor.shape[0]
    return None


def _arguments(model: nn.Module) -> dict[str, Any]:
    return cast(dict[str, Any], getattr(model, "arguments", {}))


def _normalize(
    meta: Mapping[str, Any], source: str, arguments: Mapping[str, Any]
) -> Normalize | None:
    if "normalize" in meta:
        return Normalize.from_dict(meta["normalize"])
    return published_normalize(source, arguments.get("name", ""), arguments.get("backbone", ""))


def _candidates(model: nn.Module, source: str) -> list[KeyMap]:
    if source == "imagenet":
        return imagenet_maps("backbone." if hasattr(model, "backbone") else "")
    own = KeyMap("openseg", {"*": "*"})
    foreign = key_maps(_arguments(model).get("name", ""))
    candidates = [names for names in [own, *foreign] if source in ("auto", names.source)]
    if not candidates:
        known = ", ".join(repr(names.source) for names in [own, *foreign])
        raise ValueError(
            f"source must be 'auto', 'imagenet' or, for this network, {known}; got {source!r}"
        )
    return candidates


def _fitting(state_dict: Mapping[str, Tensor], names: KeyMap, own: Mapping[str, Tensor]) -> int:
    """How many keys of the checkpoint the network knows by these names."""
    return sum(_our_key(key, names) in own for key in state_dict)


def _our_key(key: str, names: KeyMap) -> str:
    """The network's key for one of the checkpoint; a key without a name of ours keeps its own."""
    module, _, parameter = key.rpartition(".")
    return f"{names.module(module) or module}.{parameter}".removeprefix(".")


def _without_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Strip what DistributedDataParallel and its like put before every key."""
    for prefix in _PREFIXES:
        if all(key.startswith((prefix, "loss.")) for key in state_dict):
            state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return dict(state_dict)


def _translate(
    state_dict: Mapping[str, Tensor], names: KeyMap
) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors under our names; keys without a name of ours keep theirs."""
    report = LoadReport(names.source)
    tensors: dict[str, Tensor] = {}
    flat_norms = 0
    for key, tensor in state_dict.items():
        if key.startswith(names.ignored):
            report.ignored.append(key)
            continue
        flat_norms += names.names.get(key.rpartition(".")[0], "").endswith(".norm")
        our_key = _our_key(key, names)
        if our_key in tensors and not torch.equal(tensors[our_key], tensor):
            raise CheckpointError(
                f"{key} should repeat another tensor of the checkpoint, as {our_key}, but "
                "differs from it: the checkpoint is that of another network"
            )
        tensors[our_key] = tensor
    if names.inplace_abn and flat_norms:
        gains = [key.replace(".running_var", ".weight") for key in tensors if "running_var" in key]
        tensors |= {key: tensors[key].abs() + _ABN_EPS for key in gains if key in tensors}
        report.inplace_abn = True
        report.adapted += [
            f"{len(gains)} InPlaceABN gains w are |w| + {_ABN_EPS}",
            "activation of the heads is LeakyReLU(0.01), that of InPlaceABN",
        ]
    for module, times in names.last.items():
        if (weight := tensors.get(f"{module}.weight")) is not None:
            tensors[f"{module}.weight"] = weight.roll(times * weight.shape[0], dims=1)
            report.adapted.append(f"the input channels of {module} come in another order")
    return tensors, report


def _check(
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    name: str,
    names: KeyMap,
    variant: str | None,
) -> None:
    wanted = [key for key in own if key.startswith(names.scope) and not key.endswith(_COUNTER)]
    missing = [key for key in wanted if key not in tensors]
    unexpected = [key for key in tensors if key not in own]
    mismatched = [
        f"{key} ({_size(tensors[key])} in the checkpoint, {_size(own[key])} in the network)"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    if not any(problems.values()):
        return
    lines = [f"{name} does not fit the network (read with the names of {names.source}):"]
    for problem, keys in problems.items():
        if keys:
            lines.append(f"  {len(keys)} {problem}:")
            lines += [f"    {key}" for key in keys]
    if names.variant not in (None, variant):
        lines.append(f"The network of {names.source} is variant={names.variant!r} here.")
    lines.append(
        "Check the network's name, backbone, variant and number of classes; weights of a backbone "
        "alone need source='imagenet'."
    )
    raise CheckpointError("\n".join(lines))


def _size(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "scalar"
