# SPDX-License-Identifier: MIT
import pytest
import torch
import torch.nn.functional as F

from openseg import create_model, load_weights
from openseg.backbones import WideResNet38, create_backbone, wide_resnet
from tests.weights.published import Published


def test_parameters():
    with torch.device("meta"):
        assert sum(p.numel() for p in create_backbone("wide_resnet38").parameters()) == 105_070_912


NARROW = (
    (2, (6, 6), 1),
    (1, (8, 8), 1),
    (1, (8, 8), 1),
    (1, (8, 10), 2),
    (1, (4, 6, 12), 4),
    (1, (6, 8, 16), 4),
)


def published(net, x):
    """Norms with their activations before the convolutions, as InPlaceABN."""
    x, maps = net.conv(x, "mod1.conv1", 64, 3, bias=False, padding=1), []
    for number, (count, channels, dilation) in enumerate(NARROW, start=2):
        if number < 4:
            x = F.max_pool2d(x, 3, 2, padding=1, ceil_mode=True)
        for i in range(count):
            name, stride = f"mod{number}.block{i + 1}", 2 if (number, i) == (4, 0) else 1
            y = shortcut = net.abn(x, f"{name}.bn1")
            if stride == 1 and x.shape[1] == channels[-1]:
                shortcut = x
            else:
                options = {"bias": False, "stride": stride}
                shortcut = net.conv(y, f"{name}.proj_conv", channels[-1], **options)
            kernels = (3, 3) if len(channels) == 2 else (1, 3, 1)
            for n, (width, kernel) in enumerate(zip(channels, kernels, strict=True), start=1):
                if n > 1:
                    y = net.abn(y, f"{name}.convs.bn{n}")
                d = dilation if kernel == 3 else 1
                options = {"padding": d * (kernel // 2), "dilation": d, "bias": False}
                options["stride"] = stride if n == 1 else 1
                y = net.conv(y, f"{name}.convs.conv{n}", width, kernel, **options)
            x = y + shortcut
        maps.append(x)
    return [*maps[2:5], net.abn(x, "bn_out")]


@pytest.mark.parametrize("size", [(65, 64), (50, 83)])
def test_equals_the_published_one(monkeypatch, size):
    monkeypatch.setattr(wide_resnet, "_PLAN", NARROW)
    backbone = WideResNet38().double().eval()
    images = torch.randn(1, 3, *size, dtype=torch.float64)
    net = Published(inplace_abn=True)
    known = published(net, images)
    assert load_weights(backbone, net.state, source="imagenet").source == "imagenet, InPlaceABN"
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), known)


@pytest.mark.parametrize("side", [65, 64])
def test_four_maps_of_stride_8(side):
    with torch.device("meta"):
        backbone = create_backbone("wide_resnet38", in_channels=4)
        maps = backbone(torch.empty(1, 4, side, side))
    size = side // 8 + 1  # the poolings round up
    assert [tuple(m.shape) for m in maps] == [(1, c, size, size) for c in backbone.channels]


def test_dilations():
    with torch.device("meta"):
        body = create_backbone("wide_resnet38")
    for name, dilation in {"mod3": 1, "mod4": 1, "mod5": 2, "mod6": 4, "mod7": 4}.items():
        convs = [m for m in getattr(body, name).modules() if isinstance(m, torch.nn.Conv2d)]
        assert {c.dilation[0] for c in convs if c.kernel_size == (3, 3)} == {dilation}


@pytest.mark.parametrize("options", [{"output_stride": 16}, {"multi_grid": [1, 2, 4]}])
def test_options_of_resnets_are_refused(options):
    with pytest.raises(ValueError, match="wide_resnet38 must"):
        create_backbone("wide_resnet38", **options)


# Loading into tensors without storage warns that it does nothing; the names are what counts here.
@pytest.mark.filterwarnings("ignore:for .*non-meta")
def test_published_names():
    """Of FCN: a norm that includes its activation is one module there, ours has it as `norm`."""
    with torch.device("meta"):
        model = create_model("fcn", backbone="wide_resnet38", num_classes=2)
    rename = {"head.conv.conv": "cls_head.0", "head.conv.norm": "cls_head.1"}
    rename |= {"head.classifier": "cls_head.3"}
    rename |= {f"aux_{ours}": theirs.replace("cls", "dsn") for ours, theirs in rename.items()}
    published = {}
    for key, value in model.state_dict().items():
        module, _, parameter = key.rpartition(".")
        module = rename.get(module, module).removesuffix(".norm")
        if parameter != "num_batches_tracked":
            published[f"{module}.{parameter}"] = value
    report = load_weights(model, published)
    assert len(report.loaded) == len(published)
    assert model.backbone.mod4.block1.bn1.activation.negative_slope == 0.01


def test_its_imagenet_weights_are_inplace_abn():
    with torch.device("meta"):
        backbone = create_backbone("wide_resnet38")
    published = {"module.classifier.fc.weight": torch.zeros(1)}
    for key in backbone.state_dict():
        module, _, parameter = key.rpartition(".")
        shape = backbone.state_dict()[key].shape
        if parameter != "num_batches_tracked":
            value = torch.full((1,), -2.0).expand(shape)
            published[f"module.{module.removesuffix('.norm')}.{parameter}"] = value
    backbone.to_empty(device="cpu")
    report = load_weights(backbone, published, source="imagenet")
    assert report.source == "imagenet, InPlaceABN"
    assert report.ignored == ["classifier.fc.weight"]
    assert backbone.mod7.block1.bn1.norm.weight.tolist() == pytest.approx([2.00001] * 2048)
    assert backbone.mod7.block1.bn1.norm.bias.unique().tolist() == [-2]
    assert backbone.bn_out.activation.negative_slope == 0.01
