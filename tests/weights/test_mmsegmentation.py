# SPDX-License-Identifier: MIT
"""mmsegmentation's heads, written down by its names: they give its keys, and known outputs."""

import pytest
import torch
import torch.nn.functional as F

from openseg import create_model, load_weights
from openseg.backbones.resnet import deep_stem_of
from openseg.errors import CheckpointError
from openseg.weights import CONVENTIONS

CLASSES = 5


class Published:
    """Layers in eval mode whose parameters are drawn when they are first used."""

    def __init__(self):
        self.state = {}
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, key, *shape, least=None):
        value = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        value = 0.1 * value if least is None else least + value.abs()
        self.state[key] = value
        return value

    def conv(self, x, name, width, kernel=1, *, bias=True, **options):
        weight = self.draw(f"{name}.weight", width, x.shape[1], kernel, kernel)
        return F.conv2d(x, weight, self.draw(f"{name}.bias", width) if bias else None, **options)

    def norm(self, x, name):
        mean, var, weight, bias = (
            self.draw(f"{name}.{key}", x.shape[1], least=least)
            for key, least in (
                ("running_mean", None), ("running_var", 0.5), ("weight", 0.5), ("bias", None)
            )
        )  # fmt: skip
        return F.relu(F.batch_norm(x, mean, var, weight, bias))

    def module(self, x, name, width, kernel=1, dilation=1):
        padding = dilation * (kernel // 2)
        options = {"padding": padding, "dilation": dilation, "bias": False}
        return self.norm(self.conv(x, f"{name}.conv", width, kernel, **options), f"{name}.bn")

    def fcn(self, x, name, width, kernel=3):
        return self.conv(self.module(x, f"{name}.convs.0", width, kernel), f"{name}.conv_seg", 5)

    def two(self, x, name):
        return self.module(self.module(x, f"{name}.0", 256), f"{name}.1", 256)


def attend(query, key, value):
    weights = (256**-0.5 * query.flatten(2).mT @ key.flatten(2)).softmax(-1)
    return (value.flatten(2) @ weights.mT).view(*value.shape[:2], *query.shape[2:])


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


@pytest.mark.parametrize(
    ("head", "backbone"),
    [(head, "resnet18c") for head in (fcn, pspnet, deeplabv3, isanet, ocrnet)]
    + [(ocrnet, "hrnet_w18"), (hrnet, "hrnet_w18")],
)
def test_heads_equal_the_published_ones(head, backbone):
    arguments = {"name": head.__name__, "backbone": backbone, "num_classes": CLASSES}
    model = create_model(**arguments, variant="mmseg").double().eval()
    size = 64 if head is isanet else 16
    images = torch.randn(1, 3, size, size - 1, dtype=torch.float64)
    net = Published()
    with torch.no_grad():
        maps = model.features(images)
        if head is isanet:
            maps = [m[:, :, :8, :8] for m in maps]
        known_aux, known = head(net, *maps)
    backbone_keys = {f"backbone.{k}": v for k, v in model.backbone.state_dict().items()}
    report = load_weights(model, {"state_dict": backbone_keys | net.state, "meta": {"epoch": 1}})
    assert report.source == "mmsegmentation"
    assert report.normalize == CONVENTIONS["imagenet"]
    model.features = lambda _: maps
    with torch.no_grad():
        output = model(images)
    torch.testing.assert_close(output.main, known)
    if known_aux is not None:
        torch.testing.assert_close(output.aux["aux"], known_aux)


def test_the_stem_of_its_resnets():
    """32, 32 and 64 channels, and a pooling that rounds down; flat names where it stands alone."""
    net = Published()
    x = images = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    for i, width in zip((0, 3, 6), (32, 32, 64), strict=True):
        x = net.conv(x, f"stem.{i}", width, 3, bias=False, stride=2 if i == 0 else 1, padding=1)
        x = net.norm(x, f"stem.{i + 1}")
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
    net = Published()
    fcn(net, torch.zeros(1, 256, 1, 1, dtype=torch.float64), torch.zeros(1, 512, 1, 1).double())
    with pytest.raises(CheckpointError, match=r"mmsegmentation is variant='mmseg' here"):
        load_weights(model, net.state)


def test_variant_resizes_as_mmsegmentation_does():
    with torch.device("meta"):
        assert create_model("pspnet", "resnet18", variant="mmseg").align_corners is False
        assert create_model("pspnet", "resnet18").align_corners is True
        chosen = create_model("pspnet", "resnet18", variant="mmseg", align_corners=True)
    assert chosen.arguments["align_corners"] is True
