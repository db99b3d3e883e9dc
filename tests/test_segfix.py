# SPDX-License-Identifier: MIT
"""SegFix by its commands on a small tree: trained, evaluated, mending maps of another network."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from openseg import evaluate, refine, train
from openseg.engine.checkpoints import read_checkpoint
from openseg.errors import CheckpointError, ConfigError, DataError, OutputError
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


def test_it_mends_labels_while_they_are_evaluated_as_it_mends_files(
    trained, monkeypatch, tmp_path, capsys
):
    fcn, segfix = checkpoint(trained, "fcn"), checkpoint(trained, "segfix")
    words = ("--checkpoint", fcn, "--submission")
    run(monkeypatch, evaluate, *words, tmp_path / "plain")
    run(monkeypatch, evaluate, *words, tmp_path / "mended", "--segfix", segfix)
    images = trained / "cityscapes/leftImg8bit/val/*/*.png"
    words = ("--checkpoint", segfix, "--labels", tmp_path / "plain", "--output", tmp_path / "files")
    run(monkeypatch, refine, *words, images)
    assert "2 label maps, " in capsys.readouterr().out
    changed = 0
    for path in (tmp_path / "plain").iterdir():
        plain, mended, file = (np.array(Image.open(tmp_path / kind / path.name))
                               for kind in ("plain", "mended", "files"))  # fmt: skip
        np.testing.assert_array_equal(mended, file)
        assert set(np.unique(file)) <= set(np.unique(plain))
        changed += (plain != file).sum()
    assert changed > 0
    with pytest.raises(OutputError, match="there already; --overwrite"):
        run(monkeypatch, refine, *words, images)


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


def test_mistakes_are_named(trained, monkeypatch, tmp_path):
    fcn, segfix = checkpoint(trained, "fcn"), checkpoint(trained, "segfix")
    images = trained / "cityscapes/leftImg8bit/val/bonn"
    words = (images, "--labels", tmp_path, "--output", tmp_path / "out", "--checkpoint")
    with pytest.raises(DataError, match=r"bonn_val_0_leftImg8bit\.png: .*2 of 2 lack theirs"):
        run(monkeypatch, refine, *words, segfix)
    for index in range(2):
        miniature.write(tmp_path / f"bonn_val_{index}_leftImg8bit.png", miniature.image())
    with pytest.raises(CheckpointError, match=r"last\.pt: its network is fcn, a segfix expected"):
        run(monkeypatch, refine, *words, fcn)
    with pytest.raises(CheckpointError, match="a segfix expected"):
        run(monkeypatch, evaluate, "--checkpoint", fcn, "--segfix", fcn)
    with pytest.raises(DataError, match=r"32×24 in mode RGB given, 60×40 as .*one channel"):
        run(monkeypatch, refine, *words, segfix)
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
