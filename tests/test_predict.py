# SPDX-License-Identifier: MIT
"""`python -m openseg.predict` from a written checkpoint to written pictures."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from openseg import predict
from openseg.build import load_predictor
from openseg.engine.prediction import Predictor
from openseg.errors import CheckpointError, ConfigError, DataError
from tests.tiny_checkpoint import NORMALIZE, scenes, write_checkpoint


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    return write_checkpoint(path), path


@pytest.fixture
def photos(tmp_path):
    """Two scenes as files; the second of odd size."""
    folder = tmp_path / "photos"
    folder.mkdir()
    images = {"a": scenes().load(0).image, "b": scenes().load(1).image[:37, :51]}
    for name, image in images.items():
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder, images


def run_main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["predict", *map(str, words)])
    return predict.main()


def expected_labels(model, image):
    return model.predict(torch.from_numpy(NORMALIZE(image))[None])[0].numpy()


def test_command_predicts_what_it_can_and_tells_the_rest(trained, photos, tmp_path):
    model, checkpoint = trained
    folder, images = photos
    (folder / "broken.png").write_bytes(b"no image")
    words = ["--checkpoint", checkpoint, folder, "--output", tmp_path / "out", "--device", "cpu"]
    command = [sys.executable, "-m", "openseg.predict", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "2 of 3 images predicted" in done.stdout
    assert "broken.png" in done.stderr
    assert "predicting: 3/3" in done.stderr
    assert "Traceback" not in done.stderr
    palette = np.array(scenes().info.palette)
    for name, image in images.items():
        labels = Image.open(tmp_path / "out" / "labels" / f"{name}.png")
        assert np.array_equal(np.array(labels), expected_labels(model, image))
        assert np.array_equal(np.array(labels.convert("RGB")), palette[np.array(labels)])
        for kind, suffix in (("overlay", "jpg"), ("confidence", "png")):
            picture = Image.open(tmp_path / "out" / kind / f"{name}.{suffix}")
            assert picture.size == image.shape[1::-1]


def test_python_in_three_lines(trained, photos):
    model, checkpoint = trained
    folder, images = photos
    predictor = Predictor(*load_predictor(checkpoint, "cpu"))
    image, labels, confidence = predictor(folder / "b.png")
    assert np.array_equal(image, images["b"])
    assert np.array_equal(labels, expected_labels(model, image))
    assert confidence.shape == labels.shape
    assert 1 / len(predictor.classes) < confidence.min() <= confidence.max() < 1


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["--amp", "bf16"], {"amp_dtype": torch.bfloat16}),
        (["--scales", "0.5,1", "--flip"], {"scales": (0.5, 1.0), "flip": True}),
        (
            ["--slide", "48,32", "--stride", "48,24"],
            {"mode": "slide", "crop_size": (48, 32), "stride": (48, 24)},
        ),
    ],
)
def test_options_reach_the_network(words, options, trained, photos, tmp_path, monkeypatch):
    _, checkpoint = trained
    folder, images = photos
    fixed = ["--checkpoint", checkpoint, "--output", tmp_path, "--save", "labels"]
    assert run_main(monkeypatch, folder / "a.png", *fixed, "--device", "cpu", *words) == 0
    written = np.array(Image.open(tmp_path / "labels" / "a.png"))
    predictor = Predictor(*load_predictor(checkpoint, "cpu"), **options)
    assert np.array_equal(written, predictor(images["a"]).labels)
    plain = Predictor(*load_predictor(checkpoint, "cpu"))
    assert not np.array_equal(written, plain(images["a"]).labels)


def test_a_mirrored_pass_warns_where_left_and_right_are_unknown(
    trained, photos, tmp_path, monkeypatch, capsys
):
    fixed = ["--checkpoint", trained[1], photos[0] / "a.png", "--save", "labels", "--overwrite"]
    fixed += ["--output", tmp_path, "--device", "cpu"]
    run_main(monkeypatch, *fixed)
    assert "warning" not in capsys.readouterr().err
    run_main(monkeypatch, *fixed, "--flip")
    assert "best.pt does not say which classes are left and right" in capsys.readouterr().err
    content = torch.load(trained[1], weights_only=True)
    content["meta"]["flip_pairs"] = []
    torch.save(content, tmp_path / "told.pt")
    run_main(monkeypatch, *fixed, "--flip", "--checkpoint", tmp_path / "told.pt")
    assert "warning" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["nothing.png"], DataError, "no such file"),
        (["a.png", "--stride", "8,8"], ConfigError, "stride"),
        (["a.png", "--slide", "8,8", "--stride", "9,9"], ConfigError, "stride"),
        (["a.png", "--slide", "0,0"], ConfigError, r"crop_size, .* is \(0, 0\)"),
        (["a.png", "--slide=-5,5"], ConfigError, r"crop_size, .* is \(-5, 5\)"),
        (["a.png", "--scales", "0"], ConfigError, "scales"),
        (["a.png", "--scales", "nan"], ConfigError, "scales"),
        (["a.png", "--scales", "1,inf"], ConfigError, "scales"),
        (["a.png", "--checkpoint", "a.png"], CheckpointError, r"a\.png"),
        (["a.png", "--checkpoint", "none.pt"], CheckpointError, r"none\.pt"),
    ],
)
def test_mistakes_are_told_before_any_work(
    words, error, message, trained, photos, tmp_path, monkeypatch
):
    monkeypatch.chdir(photos[0])
    with pytest.raises(error, match=message):
        run_main(monkeypatch, "--checkpoint", trained[1], "--output", tmp_path / "out", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--save", "labels,masks"], "labels,overlay,confidence"),
        (["--slide", "512"], "HEIGHT,WIDTH"),
        (["--scales", "1;2"], "numbers such as"),
    ],
)
def test_words_that_cannot_be_read_leave_with_status_2(words, message, monkeypatch, capsys):
    with pytest.raises(SystemExit) as left:
        run_main(monkeypatch, "a.png", "--checkpoint", "c.pt", "--output", "out", *words)
    assert left.value.code == 2
    assert message in capsys.readouterr().err
