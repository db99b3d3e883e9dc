# SPDX-License-Identifier: MIT
"""SegFix by its commands on a small tree: trained, evaluated, mending maps of another network."""

import json
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from openseg import evaluate, refine, train
from openseg.build import build_datasets
from openseg.build.refinement import PredictedOffsets
from openseg.config import load_config
from openseg.engine.checkpoints import read_checkpoint, save_checkpoint
from openseg.errors import CheckpointError, ConfigError, DataError, OutputError
from openseg.models import create_model, refine_labels
from tests.data import miniature

SMALL = (
    *("model.backbone=resnet18", "model.output_stride=16", "model.weights_source=auto"),
    *("data.workers=0", "device=cpu", "data.crop_size=[48,48]", "run.samples=0"),
    *("train.iterations=2", "train.batch_size=2", "val.every=2"),
)


def run(monkeypatch, entry_point, *words):
    monkeypatch.setattr(sys, "argv", ["openseg", *map(str, words)])
    return entry_point.main()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tree of Cityscapes with regions as large as SegFix wants them, and two networks of it."""
    folder = tmp_path_factory.mktemp("segfix")
    root = folder / "cityscapes"
    label = np.full((40, 60), 7, dtype=np.uint8)
    label[8:32, 10:50] = 26
    label[:3] = 0
    for split in ("train", "val"):
        for index in range(2):
            stem = f"{split}/bonn/bonn_{split}_{index}"
            miniature.write(
                root / "leftImg8bit" / f"{stem}_leftImg8bit.png", miniature.image(index, (40, 60))
            )
            miniature.write(root / "gtFine" / f"{stem}_gtFine_labelIds.png", label)
    with pytest.MonkeyPatch.context() as context:
        for name, cfg in (
            ("segfix", "cityscapes/segfix_hrnet_w48"),
            ("fcn", "cityscapes/fcn_r101"),
        ):
            own = [f"data.offsets={folder}/offsets"] if name == "segfix" else []
            words = [*SMALL, *own, f"data.root={root}", f"run.folder={folder}/{name}"]
            assert run(context, train, "--cfg", cfg, *words) == 0
    return folder


def checkpoint(folder, name):
    return folder / name / "checkpoints" / "last.pt"


def test_targets_of_instances_are_those_of_their_files_and_kept_apart(trained, tmp_path):
    root = trained / "cityscapes"
    instances = np.full((40, 60), 7, dtype=np.uint16)
    instances[8:32, 10:30], instances[8:32, 30:50] = 26_000, 26_001
    for path in root.rglob("*_labelIds.png"):
        miniature.write(path.with_name(path.name.replace("labelIds", "instanceIds")), instances)
    words = [*SMALL, f"data.root={root}", f"data.offsets={tmp_path}"]
    lost = root / "gtFine/val/bonn/bonn_val_1_gtFine_instanceIds.png"
    lost.unlink()
    with pytest.raises(DataError, match=rf"{lost}: there is no such file \(1 of 2 are missing\)"):
        build_datasets(load_config("cityscapes/segfix_hrnet_w48_inst", words))
    miniature.write(lost, instances)
    train_set, val_set = build_datasets(load_config("cityscapes/segfix_hrnet_w48_inst", words))
    label, distance, _ = np.moveaxis(train_set.load(1).label, 2, 0)
    assert distance[20, 27:33].tolist() == [3, 2, 1, 1, 2, 3]
    assert (distance[:3] == 0).all()
    assert (label[:3] == 255).all()
    assert (val_set.load(0).label[20, 27:33] == 1).all()
    assert (tmp_path / "instances/train/bonn_train_1_leftImg8bit.png").exists()
    _, of_classes = build_datasets(load_config("cityscapes/segfix_hrnet_w48", words))
    assert (of_classes.load(0).label[20, 27:33] == 0).all()


@pytest.fixture(scope="module")
def drawn(trained):
    """The same network with random weights, which finds borders here and there."""
    contents = read_checkpoint(checkpoint(trained, "segfix"))
    torch.manual_seed(1)
    weights = create_model(**contents["model"]).state_dict()
    save_checkpoint(trained / "drawn.pt", {**contents, "state_dict": weights})
    return trained / "drawn.pt"


def test_it_is_trained_on_borders_and_their_directions(trained):
    records = map(json.loads, (trained / "segfix/metrics.jsonl").read_text().splitlines())
    losses, validation = list(records)
    assert losses["loss"] == pytest.approx(losses["mask"] + losses["direction"])
    assert losses["mask"] > 0
    border = validation["classes"]["boundary"]["pixels"]
    interior = validation["classes"]["interior"]["pixels"]
    assert border + interior == 2 * 37 * 60  # the unlabelled rows do not count
    assert border > interior > 0
    saved = read_checkpoint(checkpoint(trained, "segfix"))
    assert saved["meta"]["classes"] == ["interior", "boundary"]
    assert saved["training"]["iteration"] == 2
    kept = {
        path.relative_to(trained / "offsets").as_posix()
        for path in trained.rglob("offsets/**/*.png")
    }
    assert kept == {f"{split}/bonn_{split}_{i}_leftImg8bit.png"
                    for split in ("train", "val") for i in range(2)}  # fmt: skip


def test_it_is_evaluated_by_the_data_of_its_run(trained, monkeypatch):
    run(
        monkeypatch,
        evaluate,
        "--checkpoint",
        checkpoint(trained, "segfix"),
        "--output",
        trained / "report",
    )
    report = json.loads((trained / "report" / "metrics.json").read_text())
    last = (trained / "segfix/metrics.jsonl").read_text().splitlines()[-1]
    assert report["mean_iou"] == json.loads(last)["mean_iou"]


@pytest.mark.parametrize("slide", [None, "24,32"])
def test_it_mends_labels_while_they_are_evaluated_as_it_mends_files(
    trained, drawn, monkeypatch, tmp_path, capsys, slide
):
    of_evaluate, of_refine = ([], []) if slide is None else (["--segfix-slide", slide],
                                                             ["--slide", slide])  # fmt: skip
    words = ("--checkpoint", checkpoint(trained, "fcn"), "--submission")
    run(monkeypatch, evaluate, *words, tmp_path / "plain")
    run(monkeypatch, evaluate, *words, tmp_path / "mended", "--segfix", drawn, *of_evaluate)
    images = trained / "cityscapes/leftImg8bit/val/*/*.png"
    words = ("--checkpoint", drawn, "--labels", tmp_path / "plain", "--output", tmp_path / "files")
    run(monkeypatch, refine, *words, images, *of_refine)
    assert "2 label maps, " in capsys.readouterr().out
    kept = tmp_path / "kept"
    run(monkeypatch, refine, "--checkpoint", drawn, "--write-offsets", "--output", kept, images,
        *of_refine)  # fmt: skip
    words = ("--checkpoint", checkpoint(trained, "fcn"), "--segfix", kept, "--submission")
    run(monkeypatch, evaluate, *words, tmp_path / "by_file")
    changed = 0
    for path in (tmp_path / "plain").iterdir():
        kinds = ("plain", "mended", "files", "by_file")
        maps = [np.array(Image.open(tmp_path / kind / path.name)) for kind in kinds]
        plain, mended, file, by_file = maps
        np.testing.assert_array_equal(mended, file)
        np.testing.assert_array_equal(mended, by_file)
        assert set(np.unique(file)) <= set(np.unique(plain))
        changed += (plain != file).sum()
    assert changed > 0
    with pytest.raises(OutputError, match="there already; --overwrite"):
        run(monkeypatch, refine, "--checkpoint", drawn, "--labels", tmp_path / "plain",
            "--output", tmp_path / "files", images)  # fmt: skip
    (kept / "bonn_val_1_leftImg8bit.mat").unlink()
    with pytest.raises(DataError, match=r"val_1_leftImg8bit\.mat: there is no .*1 of 2 are"):
        run(monkeypatch, evaluate, *words, tmp_path / "by_file")
    with pytest.raises(ConfigError, match=r"--segfix-slide: belongs to a network, and .* a folder"):
        run(monkeypatch, evaluate, *words, tmp_path / "by_file", "--segfix-slide", "9,9")


@pytest.fixture
def street():
    """An image of the size of the tree's, and labels that say where they are from."""
    return miniature.image(7, (40, 60)), torch.arange(2400).view(40, 60)


def test_windows_of_it_overlap_by_two_thirds_as_published(drawn, street):
    image, _ = street
    predict = PredictedOffsets(drawn, "cpu", slide=(24, 33))
    inputs = torch.from_numpy(predict.normalize(image))[None]
    total, count = torch.zeros(1, 10, 40, 60), torch.zeros(40, 60)
    for top in (0, 8, 16):
        for left in (0, 11, 22, 27):
            window = np.s_[..., top : top + 24, left : left + 33]
            with torch.no_grad():
                output = predict.model(inputs[window])
            maps = torch.cat([output.main.softmax(1), output.aux["direction"]], 1)
            total[window] += F.interpolate(maps, (24, 33), mode="bilinear", align_corners=True)
            count[window] += 1
    mean = total / count
    steps = torch.tensor([(0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1)])
    expected = steps[mean[:, 2:].argmax(1)] * (mean[:, 1:2] > 0.5).movedim(1, -1)
    assert torch.equal(predict("", image), expected.movedim(-1, 1)[0])
    assert 0.1 < expected.any(-1).float().mean() < 0.9
    assert not torch.equal(predict("", image), PredictedOffsets(drawn, "cpu")("", image))


def test_a_mirrored_pass_exchanges_left_and_right(drawn, street):
    """With it, the mended labels of a mirrored image are the mirrored ones of the image."""
    image, labels = street
    predict = PredictedOffsets(drawn, "cpu", flip=True)
    mended, mirrored = (
        refine_labels(maps[None], predict("", pixels)[None], scale=1)[0]
        for pixels, maps in ((image, labels), (image[:, ::-1].copy(), labels.flip(1)))
    )
    assert torch.equal(mended, mirrored.flip(1))
    columns = (mended - labels + 1) % 60 - 1  # -1, 0 or 1 wherever they are from
    assert {-1, 0, 1} <= set(columns[1:-1, 1:-1].unique().tolist())


def test_a_palette_and_deep_ids_stay(trained, monkeypatch, tmp_path):
    (tmp_path / "labels").mkdir()
    ids = np.arange(2400, dtype=np.uint16).reshape(40, 60) + 24_000
    Image.fromarray(ids).save(tmp_path / "labels" / "bonn_val_0_leftImg8bit.png")
    indexed = Image.fromarray((ids % 5).astype(np.uint8))
    indexed.putpalette([9, 8, 7, 6, 5, 4])
    indexed.save(tmp_path / "labels" / "bonn_val_1_leftImg8bit.png")
    words = ("--checkpoint", checkpoint(trained, "segfix"), "--output", tmp_path / "out")
    images = trained / "cityscapes/leftImg8bit/val/bonn"
    run(monkeypatch, refine, *words, "--labels", tmp_path / "labels", images)
    deep, colored = (
        Image.open(tmp_path / "out" / f"bonn_val_{i}_leftImg8bit.png") for i in range(2)
    )
    assert np.isin(np.array(deep), ids).all()
    assert np.array(deep).min() >= 24_000
    assert colored.mode == "P"
    assert colored.getpalette()[:6] == [9, 8, 7, 6, 5, 4]


def test_windows_without_segfix_are_refused(trained, monkeypatch, capsys):
    fcn = checkpoint(trained, "fcn")
    with pytest.raises(SystemExit):
        run(monkeypatch, evaluate, "--checkpoint", fcn, "--segfix-slide", "9,9")
    assert "--segfix-slide: belongs to --segfix FILE" in capsys.readouterr().err


def test_mistakes_are_named(trained, monkeypatch, tmp_path):
    fcn, segfix = checkpoint(trained, "fcn"), checkpoint(trained, "segfix")
    images = trained / "cityscapes/leftImg8bit/val/bonn"
    words = (images, "--labels", tmp_path, "--output", tmp_path / "out", "--checkpoint")
    with pytest.raises(
        DataError, match=r"bonn_val_0_leftImg8bit\.png: there is no .*2 of 2 are missing"
    ):
        run(monkeypatch, refine, *words, segfix)
    for index in range(2):
        miniature.write(tmp_path / f"bonn_val_{index}_leftImg8bit.png", miniature.image())
    with pytest.raises(CheckpointError, match=r"last\.pt: its network is fcn, a segfix expected"):
        run(monkeypatch, refine, *words, fcn)
    with pytest.raises(CheckpointError, match="a segfix expected"):
        run(monkeypatch, evaluate, "--checkpoint", fcn, "--segfix", fcn)
    with pytest.raises(DataError, match=r"32×24 in mode RGB given, 60×40 as .*one channel"):
        run(monkeypatch, refine, *words, segfix)
    with pytest.raises(ConfigError, match=r"\(0, 9\); both must be at least 1 pixel"):
        run(monkeypatch, refine, *words, segfix, "--slide", "0,9")
    with pytest.raises(ConfigError, match="device: 'gpu' given, auto, cpu"):
        run(monkeypatch, refine, *words, segfix, "--device", "gpu")
    with pytest.raises(DataError, match="the network has 2 classes and the data set 'cityscapes'"):
        run(monkeypatch, evaluate, "--checkpoint", segfix, "loss.main={cross_entropy: 1}")
    for override, message in (
        ("loss.main={cross_entropy: 1}", r"\{segfix: 1\} expected for segfix"),
        ("model.name=fcn", r"model\.name: fcn given, segfix expected"),
        ("loss.main={segfix: 1, dice: 1}", "segfix: 1 alone"),
    ):
        root, folder = f"data.root={trained}/cityscapes", f"run.folder={tmp_path}/run"
        with pytest.raises(ConfigError, match=message):
            run(
                monkeypatch,
                train,
                "--cfg",
                "cityscapes/segfix_hrnet_w48",
                *SMALL,
                root,
                folder,
                override,
            )
