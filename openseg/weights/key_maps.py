# SPDX-License-Identifier: MIT
"""Module names of published checkpoints, and ours for them.

A row maps foreign module names to ours; `{a|b}` stands for as many rows, its n-th alternative on
the left belonging to the n-th on the right. A trailing `*` takes whatever follows.
"""

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_CONV = ".{0|1}", ".{conv|norm}"
_TWO_CONVS = ".{0|1|2|3}", ".{0.conv|0.norm|1.conv|1.norm}"
_HEAD = ".{0|1|3}", ".{conv.conv|conv.norm|classifier}"
_BRANCHES = ".{branches.0|branches.1|branches.2|branches.3|fuse}"
_HEAD_WITHOUT_DROPOUT = ".{0|1|2}", ".{conv.conv|conv.norm|classifier}"


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


def _self_attention(theirs: str, ours: str) -> dict[str, str]:
    return _row(theirs + ".{f_query|f_key}", ours + ".{query|key}", _TWO_CONVS) | _row(
        theirs + ".{f_value|W}", ours + ".{value|project}"
    )


def _shared_attention(theirs: str, ours: str) -> dict[str, str]:
    """The OCNet original stores the one transform twice."""
    return (
        _row(theirs + ".f_query", ours + ".query", _CONV)
        | _row(theirs + ".f_key", ours + ".query", _CONV)
        | _row(theirs + ".{f_value|W}", ours + ".{value|project}")
    )


def _atrous(theirs: str, ours: str) -> dict[str, str]:
    """The branches and the fusion of ASPP, ASP-OC and ASP-OCR."""
    return _row(theirs + ".{conv2|conv3|conv4|conv5|conv_bn_dropout}", ours + _BRANCHES, _CONV)


def _ce2p() -> dict[str, str]:
    """Everything but the context."""
    return (
        _row("edgelayer.{conv1|conv2|conv3}", "edges.{reduce.0|reduce.1|reduce.2}", _CONV)
        | _row("edgelayer.{conv4|conv5}", "edges.{classifier|fuse}")
        | _row("decoder.{conv1|conv2}", "decoder.{reduce|reduce_first}", _CONV)
        | _row("decoder.conv3", "decoder.fuse", _TWO_CONVS)
        | _row("decoder.conv4", "decoder.classifier")
        | _row("cls", "head", _HEAD_WITHOUT_DROPOUT)
        | _row("dsn", "aux_head", _HEAD)
    )


def _asp_ocr(theirs: str, ours: str) -> dict[str, str]:
    return (
        _row(theirs + ".context", ours + ".context.reduce", _CONV)
        | _object_context(theirs + ".context.2", ours + ".context.attention")
        | _atrous(theirs, ours)
    )


_BLOCK = "{mod2|mod3|mod4|mod5|mod6|mod7}.{block1|block2|block3|block4|block5|block6}"
_OPENSEG_BACKBONE = {
    "backbone.resinit.*": "backbone.stem.*",
    "backbone.*": "backbone.*",
    # The wide ResNet, whose norms include the activation:
    f"backbone.{_BLOCK}.{{bn1|convs.bn2|convs.bn3}}": (
        f"backbone.{_BLOCK}.{{bn1.norm|convs.bn2.norm|convs.bn3.norm}}"
    ),
    "backbone.bn_out": "backbone.bn_out.norm",
}

OPENSEG_PYTORCH: dict[str, dict[str, str]] = {
    "fcn": _row("{cls_head|dsn_head}", "{head|aux_head}", _HEAD),
    "pspnet": (
        {"ppm.stages.{0|1|2|3}.{1|2}": "context.levels.{0|1|2|3}.conv.{conv|norm}"}
        | _row("ppm.bottleneck", "context.fuse", _CONV)
        | _row("cls", "classifier")
        | _row("dsn", "aux_head", _HEAD)
    ),
    "deeplabv3": (
        _row("head.0.conv_gp", "context.context.conv", (".{1|2}", _CONV[1]))
        | _row(
            "head.0.{conv_1x1|conv_3x3_1|conv_3x3_2|conv_3x3_3|fuse}", "context" + _BRANCHES, _CONV
        )
        | _row("head.1", "classifier")
        | _row("dsn", "aux_head", _HEAD)
    ),
    "base_ocnet_v2": (
        _row("oc_module_pre", "reduce", _CONV)
        | _self_attention("oc_module.stages.0", "context.attention")
        | _row("oc_module.conv_bn_dropout", "context.fuse", _CONV)
        | _row("cls", "classifier")
        | _row("dsn", "aux_head", _HEAD_WITHOUT_DROPOUT)
    ),
    "asp_ocnet": (
        _row("context", "reduce", _CONV)
        | _row("context.2.context", "context.context.0", _CONV)
        | _self_attention("context.2.context.2.stages.0", "context.context.1")
        | _row("context.2.context.2.conv_bn_dropout.0", "context.context.2.norm")
        | _atrous("context.2", "context")
        | _row("cls", "classifier")
        | _row("dsn", "aux_head", _HEAD_WITHOUT_DROPOUT)
    ),
    "ocrnet": (
        _row("conv_3x3", "reduce", _CONV)
        | _object_context("spatial_ocr_head", "context")
        | _row("head", "classifier")
        | _row("dsn_head", "aux_head", _HEAD)
        # and on HRNet:
        | _row("conv3x3", "reduce", _CONV)
        | _object_context("ocr_distri_head", "context")
        | _row("cls_head", "classifier")
        | _row("aux_head", "aux_head", _HEAD_WITHOUT_DROPOUT)
    ),
    "asp_ocrnet": (
        _asp_ocr("asp_ocr_head", "context")
        | _row("{head|cls_head}", "{classifier|classifier}")
        | _row("dsn_head", "aux_head", _HEAD)
        | _row("aux_head", "aux_head", _HEAD_WITHOUT_DROPOUT)
        # and in the older, wide form:
        | _row("oc_module_pre", "reduce", _CONV)
        | _asp_ocr("fast_oc_head", "context")
    ),
    "hrnet": _row("cls_head", "head", _HEAD),
    "segfix": _row("{mask_head|dir_head}", "{mask_head|direction_head}", _HEAD_WITHOUT_DROPOUT),
    "ce2p_asp_ocrnet": _asp_ocr("asp_ocr_head", "context") | _ce2p(),
    "isanet": (
        _row("isa_head", "reduce", _CONV)
        | {
            "isa_head.2.stages.0.{long_range_sa|short_range_sa}" + rest: (
                "context.{long_range|short_range}" + ours
            )
            for rest, ours in (
                (".{f_query|f_key}" + _TWO_CONVS[0], ".{query|key}" + _TWO_CONVS[1]),
                (".f_value", ".value"),
                (".W" + _CONV[0], ".project" + _CONV[1]),
            )
        }
        | _row("isa_head.2.conv_bn", "context.fuse", _CONV)
        | _row("cls_head", "classifier")
        | _row("dsn_head", "aux_head", _HEAD)
    ),
}
"""Networks of openseg.pytorch and its pytorch-1.7 branch, by our name."""
OPENSEG_PYTORCH["ideal_ocrnet"] = OPENSEG_PYTORCH["ocrnet"]

_FLAT_RESNET = {
    "{conv1|conv2|conv3|bn1|bn2|bn3}": "backbone.stem.{conv1|conv2|conv3|bn1|bn2|bn3}",
    "{layer1|layer2|layer3|layer4}.*": "backbone.{layer1|layer2|layer3|layer4}.*",
}

OCNET_PYTORCH: dict[str, dict[str, str]] = {
    "base_ocnet": (
        _row("context", "reduce", _CONV)
        | _shared_attention("context.2.stages.0", "context.attention")
        | _row("context.2.conv_bn_dropout", "context.fuse", _CONV)
        | _row("cls", "classifier")
        | _row("dsn", "aux_head", _HEAD)
    ),
    "asp_ocnet": (
        _row("context", "reduce", _CONV)
        | _row("context.2.context", "context.context.0", _CONV)
        | _shared_attention("context.2.context.2.stages.0", "context.context.1")
        | _row("context.2.context.2.conv_bn_dropout", "context.context.2", _CONV)
        | _atrous("context.2", "context")
        | _row("cls", "classifier")
        | _row("dsn", "aux_head", _HEAD)
    ),
}
"""Networks of OCNet.pytorch, whose backbone has no name of its own; always InPlaceABN."""

_FLAT_HRNET = {
    "{conv1|conv2|bn1|bn2}": "backbone.{conv1|conv2|bn1|bn2}",
    "{layer1|stage2|stage3|stage4}.*": "backbone.{layer1|stage2|stage3|stage4}.*",
    "{transition1|transition2|transition3}.*": ("backbone.{transition1|transition2|transition3}.*"),
}

HRNET: dict[str, dict[str, str]] = {
    "hrnet": _row("last_layer", "head", _HEAD),
    "ocrnet": (
        _row("conv3x3_ocr", "reduce", _CONV)
        | _object_context("ocr_distri_head", "context")
        | _row("cls_head", "classifier")
        | _row("aux_head", "aux_head", _HEAD)
    ),
}
"""Networks of HRNet-Semantic-Segmentation, in our variant "hrnet"; never InPlaceABN."""

_MMSEG_CONV = ".{conv|bn}", ".{conv|norm}"
_MMSEG_TWO_CONVS = ".{0|1}.{conv|bn}", ".{0|1}.{conv|norm}"
_MMSEG_BACKBONE = {
    "backbone.*": "backbone.*",
    "backbone.stem.{0|1|3|4|6|7}": "backbone.stem.{conv1|bn1|conv2|bn2|conv3|bn3}",
}


def _mmseg_head(theirs: str, ours: str) -> dict[str, str]:
    """A head of one convolution."""
    return _row(theirs + ".convs.0", ours + ".conv", _MMSEG_CONV) | _row(
        theirs + ".conv_seg", ours + ".classifier"
    )


def _mmseg_attention(theirs: str, ours: str) -> dict[str, str]:
    """Queries and keys; what is done with the values differs."""
    return _row(theirs + ".{query_project|key_project}", ours + ".{query|key}", _MMSEG_TWO_CONVS)


_MMSEG_AUX = _mmseg_head("auxiliary_head", "aux_head")
_MMSEG_CLASSIFIER = _row("decode_head.conv_seg", "classifier")

MMSEGMENTATION: dict[str, dict[str, str]] = {
    "fcn": (
        _row("decode_head.convs.{0|1}", "head.convs.{0|1}", _MMSEG_CONV)
        | _row("decode_head.conv_cat", "head.fuse", _MMSEG_CONV)
        | _row("decode_head.conv_seg", "head.classifier")
        | _MMSEG_AUX
    ),
    "pspnet": (
        _row("decode_head.psp_modules.{0|1|2|3}.1", "context.levels.{0|1|2|3}.conv", _MMSEG_CONV)
        | _row("decode_head.bottleneck", "context.fuse", _MMSEG_CONV)
        | _MMSEG_CLASSIFIER
        | _MMSEG_AUX
    ),
    "deeplabv3": (
        _row("decode_head.image_pool.1", "context.context.conv", _MMSEG_CONV)
        | _row(
            "decode_head.aspp_modules.{0|1|2|3}",
            "context.branches.{0|1|2|3}",
            _MMSEG_CONV,
        )
        | _row("decode_head.bottleneck", "context.fuse", _MMSEG_CONV)
        | _MMSEG_CLASSIFIER
        | _MMSEG_AUX
    ),
    "isanet": (
        _row("decode_head.in_conv", "reduce", _MMSEG_CONV)
        | _mmseg_attention("decode_head.global_relation", "context.long_range")
        | _mmseg_attention("decode_head.local_relation", "context.short_range")
        | {
            f"decode_head.{theirs}.{{value_project|output_project.conv|output_project.bn}}": (
                f"context.{ours}.{{value|project.conv|project.norm}}"
            )
            for theirs, ours in (
                ("global_relation", "long_range"),
                ("local_relation", "short_range"),
            )
        }
        | _row("decode_head.out_conv", "context.fuse", _MMSEG_CONV)
        | _MMSEG_CLASSIFIER
        | _MMSEG_AUX
    ),
    "ocrnet": (
        _mmseg_head("decode_head.0", "aux_head")
        | _row("decode_head.1.bottleneck", "reduce", _MMSEG_CONV)
        | _mmseg_attention("decode_head.1.object_context_block", "context")
        | _row(
            "decode_head.1.object_context_block.{value_project|out_project|bottleneck}",
            "context.{value|project|fuse}",
            _MMSEG_CONV,
        )
        | _row("decode_head.1.conv_seg", "classifier")
    ),
    "hrnet": _mmseg_head("decode_head", "head"),
}
"""Networks of mmsegmentation, in our variant "mmseg"."""

_MMSEG_LAST = {"pspnet": 4, "isanet": 1}
"""There the maps that `context.fuse` takes first come last, so many times its own width."""


@dataclass(frozen=True)
class _Source:
    """A published code: names in its backbones and, by our name of the network, in the rest."""

    backbone: Mapping[str, str]
    networks: Mapping[str, Mapping[str, str]]
    inplace_abn: bool = False
    variant: str | None = None
    last: Mapping[str, int] = field(default_factory=dict)


_SOURCES = {
    "openseg.pytorch": _Source(_OPENSEG_BACKBONE, OPENSEG_PYTORCH, inplace_abn=True),
    "ocnet.pytorch": _Source(_FLAT_RESNET, OCNET_PYTORCH, inplace_abn=True),
    "hrnet": _Source(_FLAT_HRNET, HRNET, variant="hrnet"),
    "mmsegmentation": _Source(_MMSEG_BACKBONE, MMSEGMENTATION, variant="mmseg", last=_MMSEG_LAST),
}


@dataclass(frozen=True)
class KeyMap:
    """Names of one network in one published code.

    names: foreign module name -> ours. inplace_abn: a head norm directly under its number (and
    not in a Sequential of norm and activation) is InPlaceABN. scope: what our names start with
    that the checkpoint has to fill. ignored: beginnings of keys that are not wanted. variant: of
    our network, where only one fits. last: of our module, how many times its output channels the
    inputs count that it takes first and theirs takes last.
    """

    source: str
    names: Mapping[str, str]
    inplace_abn: bool = False
    scope: str = ""
    ignored: tuple[str, ...] = ("loss.",)
    variant: str | None = None
    last: Mapping[str, int] = field(default_factory=dict)

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
    return [
        KeyMap(
            name,
            _expand({**source.backbone, **source.networks[network]}),
            source.inplace_abn,
            variant=source.variant,
            last={"context.fuse.conv": source.last[network]} if network in source.last else {},
        )
        for name, source in _SOURCES.items()
        if network in source.networks
    ]


_STEM = "{conv1|bn1|conv2|bn2|conv3|bn3}"
_LAYERS = {"{layer1|layer2|layer3|layer4}.*": "{layer1|layer2|layer3|layer4}.*"}
_CLASSIFIERS = ("fc.", "classifier.", "final_layer.", "incre_modules.", "downsamp_modules.")

IMAGENET: dict[str, dict[str, str]] = {
    "torchvision or CSAIL": {_STEM: f"stem.{_STEM}"} | _LAYERS,  # the stem of CSAIL's is deep
    "timm": {"{conv1.0|conv1.1|conv1.3|conv1.4|conv1.6|bn1}": f"stem.{_STEM}"} | _LAYERS,
    "mmsegmentation": {"stem.{0|1|3|4|6|7}": f"stem.{_STEM}"} | _LAYERS,
    "InPlaceABN": {
        "*": "*",
        f"{_BLOCK}.{{bn1|convs.bn2|convs.bn3}}": (
            f"{_BLOCK}.{{bn1.norm|convs.bn2.norm|convs.bn3.norm}}"
        ),
        "bn_out": "bn_out.norm",
    },  # wide_resnet38
    "HRNet": {"*": "*"},
}
"""Classification networks, for a backbone, by whose names they have."""


def imagenet_maps(scope: str) -> list[KeyMap]:
    """The key maps that fill a backbone alone; our names of it start with `scope`."""
    return [
        KeyMap(
            f"imagenet, {code}",
            {theirs: scope + ours for theirs, ours in _expand(rows).items()},
            inplace_abn=True,
            scope=scope,
            ignored=_CLASSIFIERS,
        )
        for code, rows in IMAGENET.items()
    ]


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
