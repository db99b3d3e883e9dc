# SPDX-License-Identifier: MIT
"""Module names of published checkpoints, and ours for them.

A row maps foreign module names to ours; `{a|b}` stands for as many rows, its n-th alternative on
the left belonging to the n-th on the right. A trailing `*` takes whatever follows.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

_CONV = ".{0|1}", ".{conv|norm}"
_TWO_CONVS = ".{0|1|2|3}", ".{0.conv|0.norm|1.conv|1.norm}"
_HEAD = ".{0|1|3}", ".{conv.conv|conv.norm|classifier}"


def _row(theirs: str, ours: str, layout: tuple[str, str] = ("", "")) -> dict[str, str]:
    """The row of a run of layers that a Sequential numbers and we name."""
    return {theirs + layout[0]: ours + layout[1]}


def _object_context(theirs: str, ours: str) -> dict[str, str]:
    block = theirs + ".object_context_block"
    return (
        _row(block + ".{f_pixel|f_object}", ours + ".{query|key}", _TWO_CONVS)
        | _row(block + ".{f_down|f_up}", ours + ".{value|project}", _CONV)
        | _row(theirs + ".conv_bn_dropout", ours + ".fuse", _CONV)
    )


_OPENSEG_BACKBONE = {"backbone.resinit.*": "backbone.stem.*", "backbone.*": "backbone.*"}

OPENSEG_PYTORCH: dict[str, dict[str, str]] = {
    "fcn": _row("{cls_head|dsn_head}", "{head|aux_head}", _HEAD),
    "ocrnet": (
        _row("conv_3x3", "reduce", _CONV)
        | _object_context("spatial_ocr_head", "context")
        | _row("head", "classifier")
        | _row("dsn_head", "aux_head", _HEAD)
    ),
}
"""Networks of openseg.pytorch and its pytorch-1.7 branch, by our name."""


@dataclass(frozen=True)
class KeyMap:
    """Names of one network in one published code.

    names: foreign module name -> ours. inplace_abn: a head norm directly under its number (and
    not in a Sequential of norm and activation) is InPlaceABN.
    """

    source: str
    names: Mapping[str, str]
    inplace_abn: bool

    def module(self, name: str) -> str | None:
        """Our name of a foreign module, or None."""
        if name in self.names:
            return self.names[name]
        prefixes = [n[:-1] for n in self.names if n.endswith("*") and name.startswith(n[:-1])]
        if prefixes:
            prefix = max(prefixes, key=len)
            return self.names[prefix + "*"][:-1] + name[len(prefix) :]
        inner = self.names.get(name.removesuffix(".0"), "")  # Sequential(norm, ReLU)
        return inner if inner.endswith("norm") else None


def key_maps(network: str) -> list[KeyMap]:
    """The key maps of one of our networks, one for each published code that has it."""
    maps = []
    if network in OPENSEG_PYTORCH:
        names = _expand(_OPENSEG_BACKBONE | OPENSEG_PYTORCH[network])
        maps.append(KeyMap("openseg.pytorch", names, inplace_abn=True))
    return maps


def _expand(rows: Mapping[str, str]) -> dict[str, str]:
    pairs = (
        pair
        for theirs, ours in rows.items()
        for pair in zip(_alternatives(theirs), _alternatives(ours), strict=True)
    )
    return dict(pairs)


def _alternatives(pattern: str) -> list[str]:
    """ "a.{b|c}" -> ["a.b", "a.c"]."""
    parts = [part.split("|") for part in re.split(r"[{}]", pattern)]
    return ["".join(choice) for choice in itertools.product(*parts)]
