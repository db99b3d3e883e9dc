# SPDX-License-Identifier: MIT
"""Heads of openseg.pytorch, OCNet.pytorch and HRNet's code, written down by their names.

They stand for the networks that have no recorded outputs in `tests/golden`.
"""

import pytest
import torch
import torch.nn.functional as F

from tests.weights.published import CLASSES, Published, assert_heads_equal, attend


def block(net, x, name, width, kernel=1, dilation=1, *, bias=True, first=0):
    """A convolution and its norm, the layers `first` and `first + 1` of a Sequential."""
    padding = dilation * (kernel // 2)
    x = net.conv(x, f"{name}.{first}", width, kernel, bias=bias, padding=padding, dilation=dilation)
    return net.abn(x, f"{name}.{first + 1}")


def two(net, x, name, width):
    return block(net, block(net, x, name, width), name, width, first=2)


def head(net, x, name, width, *, kernel=3, last=3, bias=True):
    """Classifier on a block; `last` is 3 where there is a dropout between, and 2 otherwise."""
    return net.conv(block(net, x, name, width, kernel), f"{name}.{last}", CLASSES, bias=bias)


def branches(net, x, name, width, dilations, bias, parts=("conv2", "conv3", "conv4", "conv5")):
    kernels = zip(parts, (1, *dilations), strict=True)
    return [
        block(net, x, f"{name}.{part}", width, 1 if d == 1 else 3, d, bias=bias)
        for part, d in kernels
    ]


def deeplabv3(net, aux, main):
    pooled = F.adaptive_avg_pool2d(main, 1)
    maps = [block(net, pooled, "head.0.conv_gp", 256, bias=False, first=1).expand_as(main[:, :256])]
    parts = ("conv_1x1", "conv_3x3_1", "conv_3x3_2", "conv_3x3_3")
    maps += branches(net, main, "head.0", 256, (12, 24, 36), False, parts)
    x = block(net, torch.cat(maps, 1), "head.0.fuse", 256, bias=False)
    return head(net, aux, "dsn", 512), net.conv(x, "head.1", CLASSES)


def asp_ocnet(net, aux, main, *, original=False):
    x = block(net, main, "context", 512, 3)
    context = block(net, x, "context.2.context", 256, 3)
    stage, small = "context.2.context.2.stages.0", F.max_pool2d(context, 2)
    if original:  # one transform, stored twice
        query = key = block(net, small, f"{stage}.f_key", 128)
        net.state |= {k.replace("f_key", "f_query"): v for k, v in net.state.items()}
    else:
        query, key = (two(net, small, f"{stage}.{part}", 128) for part in ("f_query", "f_key"))
    value = net.conv(small, f"{stage}.f_value", 256 if original else 128)
    context = net.conv(attend(query, key, value), f"{stage}.W", 256)
    context = F.interpolate(context, x.shape[2:], mode="bilinear", align_corners=True)
    end = "context.2.context.2.conv_bn_dropout"
    context = block(net, context, end, 256) if original else net.abn(context, f"{end}.0")
    maps = [context, *branches(net, x, "context.2", 256, (12, 24, 36), False)]
    x = block(net, torch.cat(maps, 1), "context.2.conv_bn_dropout", 512, bias=False)
    return head(net, aux, "dsn", 512, last=3 if original else 2), net.conv(x, "cls", CLASSES)


def asp_ocnet_original(net, aux, main):
    return asp_ocnet(net, aux, main, original=True)


def gather(features, logits):
    """[B, C, K]."""
    return features.flatten(2) @ logits.flatten(2).softmax(2).mT


def object_attention(net, x, regions, name, key_width, *, bias=True):
    regions = regions[..., None]
    query = two(net, x, f"{name}.f_pixel", key_width)
    key = two(net, regions, f"{name}.f_object", key_width)
    value = block(net, regions, f"{name}.f_down", key_width, bias=bias)
    return block(net, attend(query, key, value), f"{name}.f_up", x.shape[1], bias=bias)


def asp_ocr(net, x, logits, name, width, dilations, bias=True):
    context = block(net, x, f"{name}.context", width, 3)
    part = f"{name}.context.2.object_context_block"
    regions = gather(context, logits)
    context = object_attention(net, context, regions, part, width // 2, bias=bias)
    maps = [context, *branches(net, x, name, width, dilations, bias)]
    return block(net, torch.cat(maps, 1), f"{name}.conv_bn_dropout", width, bias=bias)


def asp_ocrnet(net, aux, main):
    logits = head(net, aux, "dsn_head", 512)
    x = asp_ocr(net, main, logits, "asp_ocr_head", 256, (12, 24, 36))
    return logits, net.conv(x, "head", CLASSES)


def asp_ocrnet_on_hrnet(net, aux, main):
    logits = head(net, aux, "aux_head", 512, last=2, bias=False)
    x = asp_ocr(net, main, logits, "asp_ocr_head", 256, (24, 48, 72))
    return logits, net.conv(x, "cls_head", CLASSES, bias=False)


def fast_asp_ocnet(net, aux, main):
    logits = head(net, aux, "dsn_head", 512)
    x = block(net, main, "oc_module_pre", 512, 3)
    x = asp_ocr(net, x, logits, "fast_oc_head", 512, (12, 24, 36), bias=False)
    return logits, net.conv(x, "head", CLASSES)


def ocr_b(net, aux, main):
    logits = head(net, aux, "aux_head", 256, last=2)
    x = block(net, main, "conv3x3", 256, 3)
    part = "ocr_distri_head.object_context_block"
    context = object_attention(net, x, gather(x, logits), part, 128)
    x = block(net, torch.cat([context, x], 1), "ocr_distri_head.conv_bn_dropout", 256)
    return logits, net.conv(x, "cls_head", CLASSES)


def hrnet(net, _, main):
    return None, head(net, main, "cls_head", main.shape[1], bias=False)


def segfix(net, _, main):
    def logits(name, count):
        x = block(net, main, name, 256, bias=False)
        return net.conv(x, f"{name}.2", count, bias=False)

    return logits("dir_head", 8), logits("mask_head", 2)


def backbone_key(key):
    return f"backbone.{key}".replace("backbone.stem.", "backbone.resinit.")


def flat_key(key):
    return key.removeprefix("stem.")


@pytest.mark.parametrize(
    ("published", "name", "backbone", "variant"),
    [
        (deeplabv3, "deeplabv3", "resnet18c", "openseg"),
        (asp_ocnet, "asp_ocnet", "resnet18c", "openseg"),
        (asp_ocrnet, "asp_ocrnet", "resnet18c", "openseg"),
        (fast_asp_ocnet, "asp_ocrnet", "resnet18c", "wide"),
        (asp_ocrnet_on_hrnet, "asp_ocrnet", "hrnet_w18", "openseg"),
        (ocr_b, "ocrnet", "hrnet_w18", "b"),
        (hrnet, "hrnet", "hrnet_w18", "openseg"),
        (segfix, "segfix", "hrnet_w18", "openseg"),
    ],
)
def test_heads_of_openseg_pytorch(published, name, backbone, variant):
    arguments = {"name": name, "backbone": backbone, "variant": variant, "prefix": "module."}
    if published is asp_ocrnet_on_hrnet:
        arguments["size"] = (3, 75)  # its largest dilation is 72
    report = assert_heads_equal(published, Published(), backbone_key, **arguments)
    assert report.source == "openseg.pytorch"


def test_asp_oc_of_the_ocnet_original():
    report = assert_heads_equal(
        asp_ocnet_original,
        Published(inplace_abn=True),
        flat_key,
        name="asp_ocnet",
        backbone="resnet18c",
        variant="ocnet",
    )
    assert report.source == "ocnet.pytorch"


def test_the_head_of_hrnet_in_the_code_of_its_authors():
    def last_layer(net, _, main):
        x = net.conv(main, "last_layer.0", main.shape[1])
        x = F.relu(net.batch_norm(x, "last_layer.1"))
        return None, net.conv(x, "last_layer.3", CLASSES)

    arguments = {"name": "hrnet", "backbone": "hrnet_w18", "variant": "hrnet", "prefix": "model."}
    assert assert_heads_equal(last_layer, Published(), flat_key, **arguments).source == "hrnet"


def one_hot(labels, ignored):
    """Nearest labels [1, ignored + 1, h, w]; `ignored` is the class of those."""
    small = labels[:, ::2, ::2].clone()
    small[small == 255] = ignored
    return F.one_hot(small, ignored + 1).permute(0, 3, 1, 2).double()


def ideal(net, aux, main, labels, *, form="openseg"):
    logits = head(net, aux, "dsn_head", 512)
    x = block(net, main, "conv_3x3", 512, 3)
    if form == "attention":  # of K soft regions, where the last is that of ignored pixels too
        regions, known = gather(x, logits), one_hot(labels, CLASSES - 1)
    else:
        known = one_hot(labels, CLASSES)
        regions = x.flatten(2) @ F.normalize(known.flatten(2), p=1, dim=2).mT
    part = "spatial_ocr_head.object_context_block"
    contexts = [object_attention(net, x, regions, part, 256)]  # draws the unused transforms too
    if form != "gather":
        value = block(net, regions[..., None], f"{part}.f_down", 256)[..., 0]
        wanted = [known, 1 - known] if form == "background" else [known]
        weights = [F.normalize(w.flatten(2), p=1, dim=1) for w in wanted]
        contexts = [
            block(net, (value @ w).view(1, 256, *x.shape[2:]), f"{part}.f_up", 512) for w in weights
        ]
    x = block(net, torch.cat([*contexts, x], 1), "spatial_ocr_head.conv_bn_dropout", 512)
    return logits, net.conv(x, "head", CLASSES)


@pytest.mark.parametrize("form", ["openseg", "background", "gather", "attention"])
def test_ideal_regions(form):
    labels = torch.randint(0, CLASSES, (1, 6, 82), generator=torch.Generator().manual_seed(2))
    labels[:, :4, :30] = 255

    def published(net, aux, main, labels):
        return ideal(net, aux, main, labels, form=form)

    arguments = {"name": "ideal_ocrnet", "backbone": "resnet18c", "variant": form}
    report = assert_heads_equal(published, Published(), backbone_key, labels=(labels,), **arguments)
    assert report.source == "openseg.pytorch"
