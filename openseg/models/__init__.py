# SPDX-License-Identifier: MIT
"""The networks: a backbone, a context module and heads, by name."""

import difflib
from collections.abc import Sequence
from typing import Any

from openseg.backbones import create_backbone
from openseg.models.base import SegmentationModel, SegmentationOutput
from openseg.models.ce2p import CE2PAspOCNet, CE2PAspOCRNet, CE2PBaseOCNet, CE2POCRNet
from openseg.models.deeplabv3 import DeepLabV3
from openseg.models.fcn import FCN
from openseg.models.hrnet import HRNetV2
from openseg.models.isanet import ISANet
from openseg.models.ocnet import AspOCNet, BaseOCNet, BaseOCNetV2
from openseg.models.ocrnet import AspOCRNet, IdealOCRNet, OCRNet
from openseg.models.pspnet import PSPNet
from openseg.models.segfix import SegFix, refine_labels

_MODELS: dict[str, type[SegmentationModel]] = {
    "fcn": FCN,
    "pspnet": PSPNet,
    "deeplabv3": DeepLabV3,
    "base_ocnet": BaseOCNet,
    "base_ocnet_v2": BaseOCNetV2,
    "asp_ocnet": AspOCNet,
    "ocrnet": OCRNet,
    "ideal_ocrnet": IdealOCRNet,
    "asp_ocrnet": AspOCRNet,
    "isanet": ISANet,
    "hrnet": HRNetV2,
    "ce2p_base_ocnet": CE2PBaseOCNet,
    "ce2p_asp_ocnet": CE2PAspOCNet,
    "ce2p_ocrnet": CE2POCRNet,
    "ce2p_asp_ocrnet": CE2PAspOCRNet,
    "segfix": SegFix,
}
_ALIASES = {
    "FCN-Stride8": "fcn",
    "BaseOCNet": "base_ocnet",
    "BaseOCNet-v2": "base_ocnet_v2",
    "AspOCNet": "asp_ocnet",
    "FastBaseOCNet": "ocrnet",
    "OCR": "ocrnet",
    "FastAspOCNet": "asp_ocrnet",
    "ASP-OCR": "asp_ocrnet",
    "Sparse OCNet": "isanet",
    "ISA": "isanet",
    "HRNetV2": "hrnet",
    "HRNetV2+OCR": "ocrnet",
    "CE2P+BaseOC": "ce2p_base_ocnet",
    "CE2P+ASPOC": "ce2p_asp_ocnet",
    "CE2P+FastBaseOC": "ce2p_ocrnet",
    "CE2P+FastAspOC": "ce2p_asp_ocrnet",
    "segfix_hrnet": "segfix",
}
"""Names in the published tables that differ by more than the case of letters."""

__all__ = [
    "SegmentationModel",
    "SegmentationOutput",
    "create_model",
    "list_models",
    "refine_labels",
    "resolve_name",
]


def list_models() -> list[str]:
    """The names that `create_model` knows, without the tables' aliases."""
    return list(_MODELS)


def create_model(
    name: str,
    backbone: str = "resnet101c",
    num_classes: int = 19,
    *,
    output_stride: int | None = None,
    in_channels: int = 3,
    multi_grid: Sequence[int] | None = None,
    variant: str = "openseg",
    align_corners: bool | None = None,
    activation: str = "relu",
) -> SegmentationModel:
    """Build a network with fresh weights.

    Args:
        name: one of `list_models()`, or the name the published tables have for it.
        backbone: one of `openseg.backbones.list_backbones()`.
        num_classes: K, the number of classes. SegFix has two, always: interior and boundary.
        output_stride: 8 or 16; None is that of the published network. HRNets have 4, always, and
            HRNet2x 2.
        in_channels: channels of the images.
        multi_grid: factors on the dilation of the blocks of the last stage; None is all ones.
        variant: which published form of the network, where there are several.
        align_corners: of every bilinear upsampling of the network; None is True, but False in the
            variant "mmseg".
        activation: of the heads: "relu", or "leaky_relu" (0.01) as checkpoints with InPlaceABN
            have it; `load_weights` sets it for those.

    Raises:
        ValueError: an unknown name (the message has the nearest ones) or option.
    """
    name = resolve_name(name)
    network = _MODELS[name]
    for option, value in (("num_classes", num_classes), ("in_channels", in_channels)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{option} must be an integer, 1 at least, got {value!r}")
    if output_stride is None:
        output_stride = network.output_stride
    if align_corners is None:
        align_corners = variant != "mmseg"
    shared: dict[str, Any] = {
        "output_stride": output_stride,
        "in_channels": in_channels,
        "align_corners": align_corners,
    }
    uniform = variant in network.uniform_dilation
    body = create_backbone(backbone, multi_grid=multi_grid, uniform_dilation=uniform, **shared)
    model = network(body, num_classes, variant=variant, align_corners=align_corners)
    model.arguments = {
        "name": name,
        "backbone": backbone,
        "num_classes": model.num_classes,
        "multi_grid": None if multi_grid is None else list(multi_grid),
        "variant": variant,
        **shared,
    }
    model.use_activation(activation)
    return model


def resolve_name(name: str) -> str:
    """The name in `list_models()` for one of them or of the tables, in any case of letters.

    Raises ValueError for another name; the message has the nearest ones.
    """
    names = {known.lower(): known for known in _MODELS}
    names |= {alias.lower(): known for alias, known in _ALIASES.items()}
    wanted = str(name).lower()
    if wanted in names:
        return names[wanted]
    near = difflib.get_close_matches(wanted, names, n=3)
    choice = dict.fromkeys(names[match] for match in near) or _MODELS
    raise ValueError(f"unknown model {name!r}; did you mean {', '.join(choice)}?")
