# SPDX-License-Identifier: MIT
"""What is found before the first iteration, and the first two iterations on each published set."""

import json
import math
import re
import sys

import numpy as np
import pytest
from PIL import Image
from torch import nn

from openseg import build, evaluate, prepare, train
from openseg.config import load_config
from openseg.data import Cityscapes, FolderDataset
from openseg.data.first_look import look_at_samples
from openseg.errors import DataError
from openseg.models import SegmentationModel, SegmentationOutput
from tests.data import miniature

WORDS = (
    *("device=cpu", "data.crop_size=[24, 24]", "data.workers=0", "train.batch_size=2"),
    *("train.iterations=2", "val.every=2", "run.samples=0", "run.log_every=2"),
)


class TinyNet(SegmentationModel):
    """A network that is built and trained in milliseconds."""

    def __init__(self, name, backbone, num_classes, **_):
        super().__init__(nn.Conv2d(3, 8, 3, stride=4), num_classes)
        self.arguments = {"name": name, "backbone": backbone, "num_classes": num_classes}
        self.head, self.aux = nn.Conv2d(8, num_classes, 1), nn.Conv2d(8, num_classes, 1)

    def forward(self, images):
        features = self.backbone(images)
        return SegmentationOutput(self.head(features), {"aux": self.aux(features)})


def folder(root, *values, classes="ab", **options):
    miniature.write(root / "images" / "train" / "0.png", miniature.image(0, (4, 6)))
    label = np.resize(np.array(values, dtype=np.uint8), (4, 6))
    miniature.write(root / "labels" / "train" / "0.png", label)
    return FolderDataset(root, "train", tuple(classes), **options)


def test_masks_of_0_and_255(tmp_path):
    with pytest.raises(DataError, match=r"0 and 255 alone.*data\.id_map=\{0: 0, 255: 1\}"):
        look_at_samples(folder(tmp_path, 0, 255), 3)
    look_at_samples(folder(tmp_path, 0, 255, id_map={0: 0, 255: 1}), 3)
    look_at_samples(folder(tmp_path, 0, 255, id_map={0: 0, 1: 1, 255: 255}), 3)
    look_at_samples(folder(tmp_path, 0, 255, classes="abc"), 3)
    look_at_samples(folder(tmp_path, 0), 3)


def test_nothing_but_ignored_pixels(tmp_path):
    with pytest.raises(DataError, match="every pixel of 1 samples is ignored; expected ids"):
        look_at_samples(folder(tmp_path, 255), 3)


def test_files_of_train_ids_in_place_of_published_ones(tmp_path):
    root = miniature.prepared("cityscapes", tmp_path)
    look_at_samples(Cityscapes(root, "train"), 3)
    for path in root.glob("*/label/*.png"):
        miniature.write(path, miniature.train_ids("cityscapes"))
    with pytest.raises(
        DataError, match=r"2 samples have no label value above 18, and 13 of 19 cla"
    ):
        look_at_samples(Cityscapes(root, "train"), 3)


def converted(name, folder, monkeypatch):
    """The root of a set as it is published, after openseg.prepare."""
    make, further = miniature.CONVERTED[name]
    root, output = make(folder / "source"), folder / "prepared"
    words = ["prepare", name, "--root", root, "--output", output, *further(root)]
    monkeypatch.setattr(sys, "argv", [*map(str, words)])
    prepare.main()
    return output


@pytest.mark.parametrize("name", ["ade20k", "pascal_context", "coco_stuff_10k"])
def test_files_of_train_ids_have_255_where_published_ones_have_0(tmp_path, name):
    root = miniature.prepared(name, tmp_path)
    dataset = build.build_dataset(
        load_config("scenes/ocrnet_r18", [f"data.name={name}", f"data.root={root}"]), "train"
    )
    look_at_samples(dataset, 3)
    for path in root.glob("*/label/*.png"):
        miniature.write(path, miniature.train_ids(name))
    with pytest.raises(DataError, match=rf"train_0\.png: label values 255 .* {name}.*train ids"):
        look_at_samples(dataset, 3)


@pytest.mark.parametrize("name", miniature.TREES)
def test_each_published_set_from_its_files_to_a_submission(name, tmp_path, monkeypatch, capsys):
    """Two iterations, then label maps in the values of the set, which read back as counted."""
    if name in miniature.CONVERTED:
        root = converted(name, tmp_path, monkeypatch)
    else:
        root = miniature.TREES[name](tmp_path / "source")
    run = tmp_path / "run"
    words = ["--cfg", "camvid/ocrnet_r18", *WORDS, f"data.name={name}", f"data.root={root}"]
    words += [f"run.folder={run}"]
    if name != "cityscapes":
        words += ["data.order=flip_first", "data.min_side=26"]
    if name == "pascal_voc":
        words += ["data.train_split=trainaug"]
    monkeypatch.setattr(sys, "argv", ["openseg.train", *words])
    monkeypatch.setattr(build, "create_model", TinyNet)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # without pictures, which take long
    assert train.main() == 0
    printed = capsys.readouterr().out
    classes = len(miniature.VALUES[name][0])
    assert f"{classes} classes of {name}" in printed
    loss = float(re.search(r"loss ([\d.]+)", printed).group(1))
    assert 0 < loss < 2 * 1.4 * math.log(classes)  # a guess costs log K, and 0.4 of that beside
    maps, output = tmp_path / "maps", tmp_path / "report"
    words = ["--checkpoint", run / "checkpoints" / "last.pt", "--submission", maps]
    monkeypatch.setattr(sys, "argv", [*map(str, ["evaluate", *words, "--output", output])])
    evaluate.main()
    report = json.loads((output / "metrics.json").read_text())
    assert report["confusion"] == counted_again(load_config(run / "config.yaml"), maps)


def counted_again(config, maps):
    """The confusion matrix of the validation split and the written label maps."""
    dataset = build.build_dataset(config, "val")
    values, classes = list(dataset.info.label_ids), dataset.info.num_classes
    counts = np.zeros((classes, classes), dtype=int)
    for index in range(len(dataset)):
        sample = dataset.load(index)
        written = np.array(Image.open(maps / f"{sample.name}.png"))
        for true, value in zip(sample.label.ravel(), written.ravel(), strict=True):
            if true != 255:
                counts[true, values.index(value)] += 1
    assert counts.any()
    return counts.tolist()


def test_batches_of_lip_exchange_left_and_right(tmp_path):
    """The way from the data set to the transform; see test_published.py for the pairs."""
    root = miniature.lip(tmp_path)
    words = ["data.name=lip", f"data.root={root}"]
    config = load_config("scenes/ocrnet_r18", words)
    info = build.build_dataset(config, "train").info
    assert build.build_train_transform(config, info).flip_pairs == ((14, 15), (16, 17), (18, 19))
