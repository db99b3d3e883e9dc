# SPDX-License-Identifier: MIT
import collections
import datetime
import pickle
import zipfile

import pytest
import safetensors.torch
import torch

from openseg import create_model, load_weights
from openseg.errors import CheckpointError
from openseg.weights import CONVENTIONS
from openseg.weights.conventions import published_normalize

PUBLISHED = {
    "backbone.stem": "backbone.resinit",
    "head.conv.conv": "cls_head.0",
    "head.conv.norm": "cls_head.1",
    "head.classifier": "cls_head.3",
    "aux_head.conv.conv": "dsn_head.0",
    "aux_head.conv.norm": "dsn_head.1",
    "aux_head.classifier": "dsn_head.3",
}


def fcn(**options):
    return create_model("fcn", backbone="resnet18c", num_classes=4, **options).eval()


@pytest.fixture(scope="module")
def trained():
    """A network whose gains have both signs and whose statistics are not those of a fresh one."""
    torch.manual_seed(0)
    model = fcn()
    for key, value in model.state_dict().items():
        if key.endswith("running_var"):
            value.uniform_(0.5, 2.0)
        elif value.dim() == 1:
            value.normal_(0.0, 0.5)
    return model


def published(model, inplace_abn):
    """The state dict of a FCN under the names of openseg.pytorch."""
    result = {}
    for key, value in model.state_dict().items():
        if key.endswith("num_batches_tracked") and inplace_abn:
            continue
        for ours, theirs in PUBLISHED.items():
            if key.startswith(f"{ours}."):
                key = theirs + key.removeprefix(ours)
                break
        if not inplace_abn:
            key = key.replace("_head.1.", "_head.1.0.")
        result[f"module.{key}"] = value
    return result


def assert_equal(found, known):
    for (key, value), other in zip(
        found.state_dict().items(), known.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), key


def test_published_names_with_torch_norms(trained):
    model = fcn()
    report = load_weights(model, {"state_dict": published(trained, inplace_abn=False)})
    assert_equal(model, trained)
    assert report.source == "openseg.pytorch"
    assert report.adapted == []
    assert model.arguments["activation"] == "relu"


def test_published_names_with_inplace_abn(trained):
    """Gain |w| + 1e-5 in every norm, LeakyReLU(0.01) in the heads, and both of it is told."""
    model = fcn()
    report = load_weights(model, published(trained, inplace_abn=True))
    old, new = trained.backbone.layer1[0].bn1.weight, model.backbone.layer1[0].bn1.weight
    assert (old < 0).any()
    torch.testing.assert_close(new, old.abs() + 1e-5)
    torch.testing.assert_close(
        model.head.conv.norm.weight, trained.head.conv.norm.weight.abs() + 1e-5
    )
    assert torch.equal(model.head.conv.norm.bias, trained.head.conv.norm.bias)
    assert model.head.conv.activation.negative_slope == 0.01
    assert isinstance(model.backbone.layer1[0].relu, torch.nn.ReLU)
    assert "LeakyReLU" in str(report)
    again = create_model(**model.arguments)
    assert again.aux_head.conv.activation.negative_slope == 0.01


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_own_names(trained, prefix):
    model = fcn()
    own = {prefix + key: value for key, value in trained.state_dict().items()}
    report = load_weights(model, own)
    assert_equal(model, trained)
    assert report.source == "openseg"
    assert report.loaded == list(trained.state_dict())


def test_own_checkpoint_prefers_the_averaged_weights(trained, tmp_path):
    model = fcn()
    checkpoint = {"format": "openseg", "version": 1, "state_dict": model.state_dict()}
    torch.save(checkpoint | {"ema": trained.state_dict()}, tmp_path / "best.pth")
    load_weights(model, tmp_path / "best.pth")
    assert_equal(model, trained)
    torch.save(checkpoint | {"ema": None, "state_dict": trained.state_dict()}, tmp_path / "a.pth")
    load_weights(fcn(), str(tmp_path / "a.pth"))


def test_safetensors(trained, tmp_path):
    model = fcn()
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "a.safetensors")
    load_weights(model, tmp_path / "a.safetensors")
    assert_equal(model, trained)


def test_every_key_that_does_not_fit_is_named_and_nothing_is_loaded(trained):
    state_dict = published(trained, inplace_abn=False)
    del state_dict["module.cls_head.0.bias"], state_dict["module.backbone.layer2.0.conv1.weight"]
    state_dict["module.extra.weight"] = torch.zeros(3)
    state_dict["module.dsn_head.3.weight"] = torch.zeros(7, 512, 1, 1)
    model = fcn()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, state_dict)
    for text in (
        "2 missing",
        "head.conv.conv.bias",
        "backbone.layer2.0.conv1.weight",
        "1 unexpected",
        "extra.weight",
        "1 of another shape",
        "aux_head.classifier.weight (7 × 512 × 1 × 1 in the checkpoint, 4 × 512 × 1 × 1",
    ):
        assert text in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("source", "name", "backbone", "known"),
    [
        ("openseg.pytorch", "ocrnet", "resnet101c", "caffe"),
        ("openseg.pytorch", "ce2p_asp_ocrnet", "resnet101c", "caffe-lip"),
        ("openseg.pytorch", "ocrnet", "hrnet_w48", "imagenet-bgr"),
        ("openseg.pytorch", "ocrnet", "wide_resnet38", "imagenet"),
        ("ocnet.pytorch", "base_ocnet", "resnet101c", "caffe-rgb"),
        ("hrnet", "ocrnet", "hrnet_w48", "imagenet"),
        ("imagenet, torchvision or CSAIL", "ocrnet", "resnet101c", "caffe"),
        ("imagenet, torchvision or CSAIL", "ocrnet", "resnet101", "imagenet"),
        ("imagenet, mmsegmentation", "ocrnet", "resnet101_v1c", "imagenet"),
    ],
)
def test_how_the_published_codes_normalised_their_images(source, name, backbone, known):
    assert published_normalize(source, name, backbone) == CONVENTIONS[known]


def test_the_report_tells_the_normalisation(trained, tmp_path):
    report = load_weights(fcn(), published(trained, inplace_abn=False))
    assert report.normalize == CONVENTIONS["caffe"]
    assert "channel_order='BGR'" in str(report)
    assert load_weights(fcn(), trained.state_dict()).normalize is None
    own = {"format": "openseg", "state_dict": trained.state_dict(), "ema": None}
    meta = {"normalize": CONVENTIONS["caffe-lip"].to_dict()}
    torch.save(own | {"meta": meta}, tmp_path / "best.pt")
    assert load_weights(fcn(), tmp_path / "best.pt").normalize == CONVENTIONS["caffe-lip"]


RESNET_STEMS = {
    "torchvision": ("resnet18", {"stem.": ""}),
    "csail": ("resnet18c", {"stem.": ""}),
    "timm": (
        "resnet18c",
        {
            "stem.conv1": "conv1.0",
            "stem.bn1": "conv1.1",
            "stem.conv2": "conv1.3",
            "stem.bn2": "conv1.4",
            "stem.conv3": "conv1.6",
            "stem.bn3": "bn1",
        },
    ),
    "hrnet": ("hrnet_w18", {}),
}


@pytest.mark.parametrize("code", RESNET_STEMS)
def test_a_classification_network_fills_the_backbone_alone(code):
    backbone, rename = RESNET_STEMS[code]
    torch.manual_seed(0)
    known = create_model("fcn", backbone=backbone, num_classes=4)
    model = create_model("fcn", backbone=backbone, num_classes=4)
    head = model.head.conv.conv.weight.clone()
    published = {"fc.weight": torch.zeros(1000, 512)}
    for key, value in known.backbone.state_dict().items():
        for ours, theirs in rename.items():
            if key.startswith(ours):
                key = theirs + key.removeprefix(ours)
                break
        published[key] = value
    report = load_weights(model, published, source="imagenet")
    assert_equal(model.backbone, known.backbone)
    assert torch.equal(model.head.conv.conv.weight, head)
    assert report.ignored == ["fc.weight"]
    load_weights(create_model("fcn", backbone=backbone).backbone, published, source="imagenet")
    with pytest.raises(CheckpointError, match="source='imagenet'"):
        load_weights(model, published)
    del published["layer1.0.conv1.weight"]
    with pytest.raises(CheckpointError, match=r"1 missing:\n    backbone.layer1.0.conv1.weight"):
        load_weights(model, published, source="imagenet")


def test_tensors_that_should_be_shared_but_differ():
    """The OCNet original stores query and key, which are one there, under both names."""
    model = create_model("base_ocnet", backbone="resnet18c", num_classes=4)
    own = dict(model.state_dict())
    attention = "context.attention.query"
    published = {
        key.replace("backbone.stem.", "").replace("backbone.", ""): value
        for key, value in own.items()
        if key.startswith("backbone.")
    }
    for name in ("f_query", "f_key"):
        for i, part in enumerate(("conv", "norm")):
            for key in (k for k in own if k.startswith(f"{attention}.{part}.")):
                new = f"context.2.stages.0.{name}.{i}.{key.rpartition('.')[2]}"
                published[new] = own[key].clone()
    published["context.2.stages.0.f_key.0.weight"][0] += 1
    with pytest.raises(CheckpointError, match="repeat another tensor"):
        load_weights(model, published, source="ocnet.pytorch")


def test_unknown_source(trained):
    known = r"'openseg', 'openseg\.pytorch', 'mmsegmentation'; got 'mmseg'"
    with pytest.raises(ValueError, match=known):
        load_weights(fcn(), trained.state_dict(), source="mmseg")


def test_a_file_with_objects_is_refused_with_advice(trained, tmp_path):
    content = {"state_dict": trained.state_dict(), "date": datetime.date(2020, 4, 1)}
    torch.save(content, tmp_path / "old.pth")
    advice = r"old\.pth: holds .*\(datetime\.date\).*openseg\.convert old\.pth NEW\.safetensors"
    with pytest.raises(CheckpointError, match=advice):
        load_weights(fcn(), tmp_path / "old.pth")


def test_the_format_of_old_torch_is_read(trained, tmp_path):
    content = collections.OrderedDict(published(trained, inplace_abn=False))
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    model = fcn()
    load_weights(model, tmp_path / "old.pth")
    assert_equal(model, trained)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_and_missing_files(trained, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    with pytest.raises(CheckpointError, match="no such file"):
        load_weights(fcn(), path)
    path.mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        load_weights(fcn(), path)
    path.rmdir()
    save = torch.save if suffix == ".pth" else safetensors.torch.save_file
    save(trained.state_dict(), path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"<html>404</html>"):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=path.name):
            load_weights(fcn(), path)


def test_a_compiled_network_is_loaded_as_the_one_inside(trained):
    model = fcn()
    load_weights(torch.compile(model), published(trained, inplace_abn=False))
    assert_equal(model, trained)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {}}, {1: torch.zeros(1)}])
def test_a_file_without_tensors(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="no state dict"):
        load_weights(fcn(), tmp_path / "a.pth")


@pytest.mark.parametrize(
    "content",
    [b"\xff\xd8\xff\xe0 a picture", b"P6 64 64 255 another", pickle.dumps([1], 2), b"\x80\x02"],
)
def test_a_file_of_another_kind_is_not_taken_for_a_checkpoint(tmp_path, content):
    (tmp_path / "photo.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"photo\.pth: not a file that torch\.save wrote"):
        load_weights(fcn(), tmp_path / "photo.pth")


def test_an_archive_of_another_kind_is_not_taken_for_a_checkpoint(tmp_path):
    with zipfile.ZipFile(tmp_path / "book.pth", "w") as archive:
        archive.writestr("chapter.xml", "<xml>")
    with pytest.raises(CheckpointError, match=r"book\.pth: not a file that torch\.save wrote"):
        load_weights(fcn(), tmp_path / "book.pth")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.999])
def test_a_file_cut_short_is_not_said_to_hold_objects(trained, tmp_path, zipped, share):
    path = tmp_path / "cut.pth"
    torch.save(trained.state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load_weights(fcn(), path)
