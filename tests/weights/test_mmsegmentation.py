# SPDX-License-Identifier: MIT
"""mmsegmentation's heads, written down by its names: they give its keys, and known outputs."""

import pytest
import torch
import torch.nn.functional as F

from openseg import create_model, load_weights
from openseg.backbones.resnet import deep_stem_of
from openseg.errors import CheckpointError
from openseg.weights import CONVENTIONS
from tests.weights.published import CLASSES, Published, assert_heads_equal, attend


class MMSegmentation(Published):
    """Modules of a convolution, a norm and ReLU."""

    def module(self, x, name, width, kernel=1, dilation=1):
        padding = dilation * (kernel // 2)
        options = {"padding": padding, "dilation": dilation, "bias": False}
        x = self.conv(x, f"{name}.conv", width, kernel, **options)
        return F.relu(self.batch_norm(x, f"{name}.bn"))

    def fcn(self, x, name, width, kernel=3):
        return self.conv(self.module(x, f"{name}.convs.0", width, kernel), f"{name}.conv_seg", 5)

    def two(self, x, name):
        return self.module(self.module(x, f"{name}.0", 256), f"{name}.1", 256)


def fcn(net, aux, main):
    head = "decode_head"
    x = net.module(net.module(main, f"{head}.convs.0", 512, 3), f"{head}.convs.1", 512, 3)
    x = net.module(torch.cat([main, x], 1), f"{head}.conv_cat", 512, 3)
    return net.fcn(aux, "auxiliary_head", 256), net.conv(x, f"{head}.conv_seg", CLASSES)


def pspnet(net, aux, main):
    head, maps = "decode_head", [main]
    for i, bins in enumerate((1, 2, 3, 6)):
        x = net.module(F.adaptive_avg_pool2d(main, bins), f"{head}.psp_modules.{i}.1", 512)
        maps.append(F.interpolate(x, main.shape[2:], mode="bilinear", align_corners=False))
    x = net.module(torch.cat(maps, 1), f"{head}.bottleneck", 512, 3)
    return net.fcn(aux, "auxiliary_head", 256), net.conv(x, f"{head}.conv_seg", CLASSES)


def deeplabv3(net, aux, main):
    head = "decode_head"
    pooled = net.module(F.adaptive_avg_pool2d(main, 1), f"{head}.image_pool.1", 512)
    maps = [pooled.expand(-1, -1, *main.shape[2:])]
    for i, dilation in enumerate((1, 12, 24, 36)):
        kernel = 1 if dilation == 1 else 3
        maps.append(net.module(main, f"{head}.aspp_modules.{i}", 512, kernel, dilation))
    x = net.module(torch.cat(maps, 1), f"{head}.bottleneck", 512, 3)
    return net.fcn(aux, "auxiliary_head", 256), net.conv(x, f"{head}.conv_seg", CLASSES)


def isanet(net, aux, main):
    """On a map of 8 × 8, where long range is the pixel itself and short range is all of them."""
    head = "decode_head"
    x = residual = net.module(main, f"{head}.in_conv", 512, 3)
    for name in ("global_relation", "local_relation"):
        query, key = (net.two(x, f"{head}.{name}.{p}_project") for p in ("query", "key"))
        value = net.conv(x, f"{head}.{name}.value_project", 512)
        context = value if name == "global_relation" else attend(query, key, value)
        x = net.module(context, f"{head}.{name}.output_project", 512)
    x = net.module(torch.cat([x, residual], 1), f"{head}.out_conv", 512)
    return net.fcn(aux, "auxiliary_head", 256), net.conv(x, f"{head}.conv_seg", CLASSES)


def ocrnet(net, aux, main):
    one_map = aux is main
    regions = net.fcn(aux, "decode_head.0", main.shape[1] if one_map else 256, 1 if one_map else 3)
    features = net.module(main, "decode_head.1.bottleneck", 512, 3)
    block = "decode_head.1.object_context_block"
    objects = features.flatten(2) @ regions.flatten(2).softmax(2).mT
    query = net.two(features, f"{block}.query_project")
    key = net.two(objects[..., None], f"{block}.key_project")
    value = net.module(objects[..., None], f"{block}.value_project", 256)
    context = net.module(attend(query, key, value), f"{block}.out_project", 512)
    x = net.module(torch.cat([context, features], 1), f"{block}.bottleneck", 512)
    return regions, net.conv(x, "decode_head.1.conv_seg", CLASSES)


def hrnet(net, _, main):
    return None, net.fcn(main, "decode_head", main.shape[1], 1)


STEM = {"conv1": 0, "bn1": 1, "conv2": 3, "bn2": 4, "conv3": 6, "bn3": 7}


def backbone_key(key):
    """Of a ResNet, whose stem is numbered, or of an HRNet."""
    part, _, parameter = key.removeprefix("stem.").rpartition(".")
    return (
        f"backbone.stem.{STEM[part]}.{parameter}" if key.startswith("stem.") else f"backbone.{key}"
    )


@pytest.mark.parametrize(
    ("head", "backbone"),
    [(head, "resnet18c") for head in (fcn, pspnet, deeplabv3, isanet, ocrnet)]
    + [(ocrnet, "hrnet_w18"), (hrnet, "hrnet_w18")],
)
def test_heads_equal_the_published_ones(head, backbone):
    report = assert_heads_equal(
        head,
        MMSegmentation(),
        backbone_key,
        size=(8, 8) if head is isanet else (3, 41),
        name=head.__name__,
        backbone=backbone,
        variant="mmseg",
    )
    assert report.source == "mmsegmentation"
    assert report.normalize == CONVENTIONS["imagenet"]


def test_the_stem_of_its_resnets():
    """32, 32 and 64 channels, and a pooling that rounds down; flat names where it stands alone."""
    net = Published()
    x = images = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    for i, width in zip((0, 3, 6), (32, 32, 64), strict=True):
        x = net.conv(x, f"stem.{i}", width, 3, bias=False, stride=2 if i == 0 else 1, padding=1)
        x = F.relu(net.batch_norm(x, f"stem.{i + 1}"))
    known = F.max_pool2d(x, 3, 2, 1)
    model = create_model("ocrnet", "resnet50_v1c", CLASSES, variant="mmseg")
    layers = {k: v for k, v in model.backbone.state_dict().items() if k.startswith("layer")}
    report = load_weights(model, net.state | layers, source="imagenet")
    assert report.source == "imagenet, mmsegmentation"
    stem = model.backbone.stem.double().eval()
    with torch.no_grad():
        torch.testing.assert_close(
            model.backbone.maxpool(stem(images)), known, rtol=1e-5, atol=1e-5
        )
    assert len(stem) == len(deep_stem_of(3, 64))


def test_another_variant_is_told_which_one_fits():
    model = create_model("fcn", "resnet18c", CLASSES)
    net = MMSegmentation()
    fcn(net, torch.zeros(1, 256, 1, 1, dtype=torch.float64), torch.zeros(1, 512, 1, 1).double())
    with pytest.raises(CheckpointError, match=r"mmsegmentation is variant='mmseg' here"):
        load_weights(model, net.state)


def test_variant_resizes_as_mmsegmentation_does():
    with torch.device("meta"):
        assert create_model("pspnet", "resnet18", variant="mmseg").align_corners is False
        assert create_model("pspnet", "resnet18").align_corners is True
        chosen = create_model("pspnet", "resnet18", variant="mmseg", align_corners=True)
    assert chosen.arguments["align_corners"] is True
