# SPDX-License-Identifier: MIT
"""`python -m openseg.evaluate` from a written checkpoint to the report."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from openseg import evaluate
from openseg.data import ContextScenes
from openseg.errors import CheckpointError, ConfigError, DataError, OutputError
from tests.tiny_checkpoint import NORMALIZE, SIZE, scenes, write_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    return write_checkpoint(path), path


def run_main(monkeypatch, checkpoint, *words):
    monkeypatch.setattr(sys, "argv", ["evaluate", "--checkpoint", *map(str, (checkpoint, *words))])
    evaluate.main()


def confusion_by_numpy(predict, num_classes):
    counts = np.zeros((num_classes, num_classes), dtype=int)
    for index in range(3):
        image, label, _ = scenes().load(index)
        pixels = torch.from_numpy(NORMALIZE(image))[None]
        np.add.at(counts, (label.ravel(), predict(pixels)[0].numpy().ravel()), 1)
    return counts


def write_folder(root, classes):
    """A folder data set of one image whose classes have these names."""
    for split in ("train", "val"):
        for kind, pixels in (("images", np.zeros((*SIZE, 3))), ("labels", np.zeros(SIZE))):
            folder = root / kind / split
            folder.mkdir(parents=True)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "a.png")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    return f"data.root={root}"


def test_the_report_is_that_of_the_confusion_matrix(trained, tmp_path, monkeypatch, capsys):
    model, checkpoint = trained
    run_main(monkeypatch, checkpoint, "--output", tmp_path / "report")
    record = json.loads((tmp_path / "report" / "metrics.json").read_text())
    counts = confusion_by_numpy(model.predict, model.num_classes)
    assert record["confusion"] == counts.tolist()
    hits, union = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    mean_iou = (hits[union > 0] / union[union > 0]).mean()
    assert record["mean_iou"] == pytest.approx(mean_iou, rel=1e-12)
    assert (record["images"], record["split"], record["scales"]) == (3, "val", [1.0])
    printed = capsys.readouterr()
    assert f"mIoU {100 * mean_iou:.2f} %" in printed.out
    assert all(name in printed.out for name in scenes().info.classes)
    assert "confusion_matrix.png" in printed.out
    assert "evaluating: 3/3" in printed.err


def test_a_submission_reads_back_as_what_was_counted(trained, tmp_path, monkeypatch, capsys):
    model, checkpoint = trained
    words = ["--submission", tmp_path / "maps", "--output", tmp_path / "report"]
    run_main(monkeypatch, checkpoint, *words)
    counts = np.zeros((model.num_classes,) * 2, dtype=int)
    for index in range(3):
        _, label, name = scenes().load(index)
        with Image.open(tmp_path / "maps" / f"{name}.png") as file:
            np.add.at(counts, (label.ravel(), np.array(file).ravel()), 1)
    record = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert record["confusion"] == counts.tolist()
    assert f"3 label maps, in train ids: {tmp_path / 'maps'}" in capsys.readouterr().out


def test_a_test_split_without_labels_is_written_and_has_no_metrics(
    trained, tmp_path, monkeypatch, capsys
):
    load = ContextScenes.load
    monkeypatch.setattr(ContextScenes, "load", lambda *a: load(*a)._replace(label=None))
    run_main(monkeypatch, trained[1], "--submission", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    printed = capsys.readouterr().out
    assert "no label to compare with" in printed
    assert "mIoU" not in printed


def test_overrides_change_the_way_of_inference(trained, tmp_path, monkeypatch):
    model, checkpoint = trained
    run_main(
        monkeypatch,
        *(checkpoint, "val.mode=slide", "val.crop_size=[48,48]", "--output", tmp_path),
        "val.flip=true",
    )
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert (record["mode"], record["crop_size"], record["flip"]) == ("slide", [48, 48], True)
    whole = confusion_by_numpy(model.predict, model.num_classes)
    assert np.sum(record["confusion"]) == whole.sum()
    assert record["confusion"] != whole.tolist()


def test_a_scale_that_is_no_number_is_refused(trained, monkeypatch):
    with pytest.raises(ConfigError, match=r"scales.*nan"):
        run_main(monkeypatch, trained[1], "val.scales=[1,.nan]")


def test_another_configuration_gives_the_data(trained, tmp_path, monkeypatch, capsys):
    _, checkpoint = trained
    words = "data.scene_size=[32,32]", "data.scene_val_length=2", "data.workers=0", "device=cpu"
    run_main(monkeypatch, checkpoint, "--cfg", "scenes/demo", "--output", tmp_path, *words)
    assert np.sum(json.loads((tmp_path / "metrics.json").read_text())["confusion"]) <= 2 * 32 * 32


def test_command_on_data_of_other_classes_leaves_with_one_line(trained, tmp_path):
    words = ["data.name=folder", write_folder(tmp_path, ["cat", "dog"])]
    command = [sys.executable, "-m", "openseg.evaluate", "--checkpoint", str(trained[1]), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: the network has 10 classes and the data set")
    assert "cat, dog" in done.stderr
    assert done.stderr.count("\n") == 1


def test_classes_of_other_names_are_a_warning(trained, tmp_path, monkeypatch, capsys):
    names = [f"{name} again" for name in scenes().info.classes]
    run_main(monkeypatch, trained[1], "data.name=folder", write_folder(tmp_path, names))
    assert "differ: sky is sky again, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["val.flop=true"], ConfigError, r"val\.flip"),
        (["--cfg", "scenes/dem"], ConfigError, "scenes/demo"),
        (["data.name=folder", "data.root=nowhere"], DataError, "nowhere"),
        (["--checkpoint", "none.pt"], CheckpointError, r"none\.pt"),
    ],
)
def test_mistakes_are_named(words, error, message, trained, monkeypatch):
    with pytest.raises(error, match=message):
        run_main(monkeypatch, trained[1], *words)


def test_output_is_checked_before_the_work(trained, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setattr(evaluate, "evaluate", None)
    with pytest.raises(OutputError, match="a file is in the way"):
        run_main(monkeypatch, trained[1], "--output", tmp_path / "taken")
