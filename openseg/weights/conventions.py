# SPDX-License-Identifier: MIT
"""How the published codes normalised the images that their weights were trained on.

Two of them are odd, and the weights need them so: openseg.pytorch gave its HRNets BGR images with
means in RGB order, OCNet.pytorch gave its ResNets RGB images with means in BGR order.
"""

from openseg.data import Normalize

_IMAGENET = Normalize()
_CAFFE = Normalize((102.9801, 115.9465, 122.7717), (1, 1, 1), 1, "BGR")

CONVENTIONS = {
    "imagenet": _IMAGENET,  # torchvision, HRNet's authors, mmsegmentation
    "imagenet-bgr": Normalize(_IMAGENET.mean, _IMAGENET.std, 255, "BGR"),
    "caffe": _CAFFE,  # the ResNets of openseg.pytorch and the ImageNet weights they start from
    "caffe-lip": Normalize((104.00698793, 116.66876762, 122.67891434), (1, 1, 1), 1, "BGR"),
    "caffe-rgb": Normalize(_CAFFE.mean, _CAFFE.std, 1, "RGB"),
}
"""The odd ones are "imagenet-bgr" and "caffe-rgb"."""


def published_normalize(source: str, network: str, backbone: str) -> Normalize | None:
    """What the weights of a source expect, by our names; None for weights of this package.

    `wide_resnet38` of openseg.pytorch is taken as that of Cityscapes and LIP; for ADE20K and
    Pascal-Context it was given BGR images. Its ResNets for LIP are known by CE2P alone.
    """
    name = None
    if source in ("hrnet", "mmsegmentation"):
        name = "imagenet"
    elif source == "ocnet.pytorch":
        name = "caffe-rgb"
    elif source == "openseg.pytorch":
        if backbone.startswith("resnet"):
            name = "caffe-lip" if network.startswith("ce2p") else "caffe"
        else:
            name = "imagenet-bgr" if backbone.startswith("hrnet") else "imagenet"
    elif source.startswith("imagenet"):
        name = "caffe" if "CSAIL" in source and backbone.endswith("c") else "imagenet"
    return None if name is None else CONVENTIONS[name]
