# SPDX-License-Identifier: MIT
"""The check of a data set: each fault by its name, the way out, weights, and the exit status."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from openseg import check_data
from openseg.build import build_dataset
from openseg.config import load_config
from openseg.data.class_weights import class_weights
from openseg.errors import ConfigError, DataError, OutputError
from tests.data import miniature

CLASSES = ("road", "tree", "car")


@pytest.fixture
def check(monkeypatch, capsys):
    """Run the entry point; gives its status and what it printed to stdout."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["check_data", *map(str, words), "data.workers=0"])
        status = check_data.main()
        return status, capsys.readouterr().out

    return call


def folder(root, labels, classes=CLASSES):
    """A folder of one's own: in both splits an image for each of `labels`, [6, 8] all."""
    miniature.write_list(root / "classes.txt", *classes)
    for split in ("train", "val"):
        for number, values in enumerate(labels):
            array = np.resize(np.array(values, dtype=np.uint8), (6, 8))
            miniature.write(root / "images" / split / f"{number}.png", miniature.image(0, (6, 8)))
            miniature.write(root / "labels" / split / f"{number}.png", array)
    return root


def test_a_sound_folder(tmp_path, check):
    status, printed = check("--root", folder(tmp_path, [[0, 1], [1, 2, 255]]))
    assert status == 0
    lines = printed.splitlines()
    assert lines[0] == f"{tmp_path.name}, 3 classes"
    assert lines[1] == "train: 2 samples, 8×6"
    assert lines[3].split() == ["0", "road", "24", "25.00", "%", "1"]
    assert lines[4].split() == ["1", "tree", "40", "41.67", "%", "2"]
    assert lines[6].split() == ["(ignored)", "16", "16.67", "%"]
    assert "problem" not in printed
    assert "try" not in printed


def test_json_has_all_of_it(tmp_path, check):
    status, printed = check("--root", folder(tmp_path, [[0, 1, 2], [9, 0]]), "--json")
    report = json.loads(printed)
    assert status == 1
    train = report["splits"][0]
    assert train["split"] == "train"
    assert train["samples"] == 2
    assert train["sizes"] == [{"width": 8, "height": 6, "images": 2}]
    assert train["classes"][0] == {"name": "road", "pixels": 40, "images": 2}
    assert train["values"] == {"0": 40, "1": 16, "2": 16, "9": 24}
    assert train["ignored_pixels"] == 24
    assert train["suggested_id_map"] == {"0": 0, "1": 1, "2": 2, "255": 255, "9": 255}
    assert len(train["problems"]) == 1
    assert "label value 9 is no id" in train["problems"][0]
    assert "24 pixels in 1 labels, such as 1; expected 0 to 2, 255" in train["problems"][0]


@pytest.mark.parametrize(
    ("classes", "labels", "suggestion"),
    [
        (("no", "yes"), [[0, 255]], "{0: 0, 255: 1}"),
        (("no", "yes"), [[0, 128], [128]], "{0: 0, 128: 1, 255: 255}"),
        (CLASSES, [[1, 2, 3]], "{0: 255, 1: 0, 2: 1, 3: 2, 255: 255}"),
        (CLASSES, [[0, 1, 2, 3]], "{0: 255, 1: 0, 2: 1, 3: 2, 255: 255}"),
        (CLASSES, [[7, 9, 20]], "{7: 0, 9: 1, 20: 2, 255: 255}"),
        (CLASSES, [[0, 128, 255]], "{0: 0, 128: 1, 255: 2}"),
        (CLASSES, [[0, 1, 2, 200, 9]], "{0: 0, 1: 1, 2: 2, 255: 255, 9: 255, 200: 255}"),
    ],
)
def test_the_suggested_map_mends_the_folder(tmp_path, check, classes, labels, suggestion):
    root = folder(tmp_path, labels, classes)
    status, printed = check("--root", root)
    assert status == 1
    assert f"try: 'data.id_map={suggestion}'" in printed
    status, printed = check("--root", root, f"data.id_map={suggestion}")
    assert status == 0, printed


def test_files_at_fault_are_named(tmp_path, check):
    root = folder(tmp_path, [[0, 1, 2]] * 6)
    images, labels = root / "images" / "train", root / "labels" / "train"
    (images / "0.png").write_bytes((images / "0.png").read_bytes()[:60])
    miniature.write(labels / "1.png", np.zeros((8, 6), dtype=np.uint8))
    miniature.write(labels / "2.png", miniature.image(0, (6, 8)))
    (labels / "3.png").unlink()
    (images / "4.png").unlink()
    status, printed = check("--root", root)
    assert status == 1
    problems = [line for line in printed.splitlines() if "problem: " in line]
    assert len(problems) == 5
    for text in (
        f"{images}/3.png: there is no label for it",
        f"{labels}/4.png: there is no image for it",
        f"{images}/0.png: cannot be read as an image",
        f"{labels}/1.png: the label is 6×8 and its image",
        f"{labels}/2.png: the label has 3 channels",
    ):
        assert any(text in line for line in problems), text


def test_the_text_is_cut_and_the_json_is_not(tmp_path, check):
    root = folder(tmp_path, [[0, 1, 2]] * 14)
    for path in (root / "labels" / "train").glob("*.png"):
        path.write_bytes(b"")
    status, printed = check("--root", root)
    assert status == 1
    assert printed.count("problem: ") == 11
    assert "and 4 more" in printed
    assert len(json.loads(check("--root", root, "--json")[1])["splits"][0]["problems"]) == 14


def test_absent_classes_are_a_problem_of_training_alone(tmp_path, check):
    root = folder(tmp_path, [[0, 1, 2]])
    miniature.write(root / "labels" / "val" / "0.png", np.zeros((6, 8), dtype=np.uint8))
    status, printed = check("--root", root)
    assert status == 0
    assert "note: 2 of 3 classes are absent (tree, car)" in printed
    status, printed = check("--root", root, "data.train_split=val", "data.val_split=train")
    assert status == 1
    assert "problem: 2 of 3 classes are absent (tree, car): nothing to learn" in printed


def test_all_ignored(tmp_path, check):
    status, printed = check("--root", folder(tmp_path, [[255]]))
    assert status == 1
    assert "no pixel has a class: all are ignored" in printed


@pytest.mark.parametrize("name", miniature.TREES)
def test_published_sets(tmp_path, check, name):
    root = miniature.TREES[name](tmp_path)
    words = ["--root", root, f"data.name={name}"]
    status, printed = check(*words)
    assert status == 0, printed
    assert "32×24" in printed
    stray = miniature.VALUES[name][2]
    config = load_config("scenes/ocrnet_r18", [words[2], f"data.root={root}"])
    path = build_dataset(config, "val").listing.pairs[0].label
    miniature.write(path, np.full(miniature.SIZE, stray, dtype=np.uint8))
    status, printed = check(*words)
    assert status == 1
    assert f"label value {stray} is no id of {name}: 768 pixels in 1 labels" in printed


def test_images_without_labels_of_a_prepared_tree(tmp_path, check):
    root = miniature.prepared("lip", tmp_path)
    status, printed = check("--root", root, "data.name=lip")
    assert status == 0
    assert "note: 1 images without a label are left out" in printed


@pytest.mark.parametrize("name", ["cityscapes", "ade20k", "pascal_context"])
def test_train_ids_given_for_published_values(tmp_path, check, name):
    root = miniature.prepared(name, tmp_path)
    for path in root.glob("*/label/*.png"):
        Image.fromarray(miniature.train_ids(name)).save(path)
    status, printed = check("--root", root, f"data.name={name}")
    assert status == 1
    assert "these look like train ids" in printed


def test_an_output_that_cannot_be_is_found_before_the_files_are_opened(tmp_path, check):
    root = folder(tmp_path / "root", [[0, 1, 2]])
    (root / "images" / "train" / "0.png").write_bytes(b"")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="a file is in the way"):
        check("--root", root, "--output", tmp_path / "file")


def test_a_split_without_labels(tmp_path, check):
    root = miniature.cityscapes(tmp_path)
    status, printed = check("--root", root, "data.name=cityscapes", "data.val_split=test")
    assert status == 1
    assert "problem: no image has a label, as in a test split" in printed


def test_a_split_that_is_not_there(tmp_path, check):
    with pytest.raises(
        DataError, match=r"training: there is no such folder; .*images has train, val"
    ):
        check("--root", folder(tmp_path, [[0]]), "data.train_split=training")


def test_what_cannot_be_checked(check):
    with pytest.raises(SystemExit):
        check("--root", "x", "--samples", "0")
    with pytest.raises(ConfigError, match="scenes is drawn"):
        check("--cfg", "scenes/ocrnet_r18")
    with pytest.raises(ConfigError, match="--cfg NAME or --root DIR"):
        check()


def test_a_picture_and_weights_that_training_takes(tmp_path, check):
    root = folder(tmp_path / "root", [[0, 0, 1], [1, 2, 255, 255]])
    output = tmp_path / "out"
    own = tmp_path / "own.yaml"
    own.write_text(f"base: camvid/ocrnet_r18\ndata: {{name: folder, root: {root}}}\n")
    words = ["--cfg", own, "--output", output, "--samples", 2, "--class-weights", "median"]
    status, printed = check(*words, "data.crop_size=[20, 30]")
    assert status == 0
    assert sorted(path.name for path in output.iterdir()) == [
        *("check.json", "class_weights.yaml", "samples.png"),
    ]
    config = load_config(output / "class_weights.yaml")
    assert config.data.root == str(root)
    # road: 32 of 48; tree: 28 of 72; car: 12 of 24 counted pixels of their images
    frequencies = np.array([32 / 48, (16 + 12) / 72, 12 / 24])
    expected = np.median(frequencies) / frequencies
    np.testing.assert_allclose(config.loss.class_weights, expected, atol=1e-4)
    assert f"try: 'loss.class_weights={config.loss.class_weights}' (median)" in printed
    report = json.loads((output / "check.json").read_text())
    assert report["class_weights"]["method"] == "median"
    with Image.open(output / "samples.png") as picture:
        assert picture.size[0] > 5 * 30
        colors = np.unique(np.asarray(picture).reshape(-1, 3), axis=0)
    assert len(colors) > 100
    status, _ = check("--cfg", "camvid/ocrnet_r18", "--root", root, "data.name=folder", *words[2:])
    assert load_config(output / "class_weights.yaml", ["data.root=x"]).data.name == "camvid"


def test_no_picture_of_a_set_with_problems(tmp_path, check):
    output = tmp_path / "out"
    status, _ = check("--root", folder(tmp_path / "root", [[0, 1, 9]]), "--output", output)
    assert status == 1
    assert [path.name for path in output.iterdir()] == ["check.json"]


def test_class_weights_by_hand():
    pixels, around = np.array([60, 30, 10, 0]), np.array([100, 60, 100, 0])
    share = np.array([0.6, 0.3, 0.1])
    frequency = np.array([0.6, 0.5, 0.1])
    expected = {
        "median": 0.5 / frequency,
        "log": 1 / np.log(1.02 + share),
        "inverse": np.array([1 / 0.6, 1 / 0.3, 10]) / 5,
    }
    for method, weights in expected.items():
        np.testing.assert_allclose(
            class_weights(pixels, around, method), [*weights, 1], atol=0.5e-4
        )
    assert class_weights(0 * pixels, around, "log") == [1.0] * 4
