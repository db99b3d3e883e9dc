# SPDX-License-Identifier: MIT
"""Predicting files with a network whose answer is known: it labels each pixel by its colour."""

import numpy as np
import pytest
from PIL import Image

from openseg.data import Normalize
from openseg.engine.prediction import Predictor, find_images, predict_files
from openseg.errors import DataError, OutputError
from tests.engine.pictures import Seer

PALETTE = [[200, 10, 20], [30, 220, 40], [50, 60, 240]]
META = {
    "classes": ["red", "green", "blue"],
    "palette": PALETTE,
    "normalize": Normalize(mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1)).to_dict(),
}


@pytest.fixture
def predictor():
    return Predictor(Seer(), META)


def write_image(path, seed=0, size=(13, 9)):
    """A picture whose pixels are red, green or blue, and the class of each."""
    labels = np.random.default_rng(seed).integers(0, 3, size).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(3, dtype=np.uint8)[labels] * 255).save(path)
    return labels


def test_classes_that_mirroring_exchanges_come_with_the_checkpoint():
    """Red and green trade places in the mirrored pass, so they come out as good as equal."""
    image = np.zeros((4, 6, 3), dtype=np.uint8)
    image[..., 0] = 255
    plain = Predictor(Seer(), META, flip=True)(image)
    paired = Predictor(Seer(), {**META, "flip_pairs": [[0, 1]]}, flip=True)(image)
    assert plain.confidence.min() > 0.99
    np.testing.assert_allclose(paired.confidence, 0.5, atol=0.01)


def test_arrays_and_files_give_the_same(predictor, tmp_path):
    labels = write_image(tmp_path / "a.png")
    from_file = predictor(tmp_path / "a.png")
    from_array = predictor(from_file.image)
    assert np.array_equal(from_file.labels, labels)
    assert np.array_equal(from_array.labels, labels)
    # Logits of a pure colour are 5, -5, -5.
    expected = 1 / (1 + 2 * np.exp(-10))
    np.testing.assert_allclose(from_array.confidence, expected, rtol=1e-6)
    assert from_array.confidence.dtype == np.float32


def test_results_are_files_of_the_same_name(predictor, tmp_path):
    truth = {name: write_image(tmp_path / "in" / f"{name}.png", i) for i, name in enumerate("ab")}
    calls = []
    failed = predict_files(
        predictor,
        find_images([str(tmp_path / "in")]),
        tmp_path / "out",
        progress=lambda *call: calls.append(call),
    )
    assert failed == []
    assert calls == [(1, 2), (2, 2)]
    for name, labels in truth.items():
        written = Image.open(tmp_path / "out" / "labels" / f"{name}.png")
        assert written.mode == "P"
        assert np.array_equal(np.array(written), labels)
        assert np.array_equal(np.array(written.convert("RGB")), np.array(PALETTE)[labels])
        for kind, suffix in (("overlay", "jpg"), ("confidence", "png")):
            assert Image.open(tmp_path / "out" / kind / f"{name}.{suffix}").size == (9, 13)
    names = sorted(str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.*"))
    assert len(names) == 7, names
    assert "legend.png" in names


def test_only_what_is_asked_for_is_written(predictor, tmp_path):
    write_image(tmp_path / "a.png")
    predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out", save=("labels",))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["labels"]


def test_an_unreadable_image_does_not_stop_the_others(predictor, tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "c.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    failed = predict_files(predictor, find_images([str(tmp_path)]), tmp_path / "out")
    assert len(failed) == 1
    assert "b.png" in str(failed[0])
    assert sorted(p.stem for p in (tmp_path / "out" / "labels").iterdir()) == ["a", "c"]


def test_existing_results_are_refused_before_any_work_unless_overwritten(predictor, tmp_path):
    for name in "abc":
        write_image(tmp_path / f"{name}.png")
    images, out = find_images([str(tmp_path)]), tmp_path / "out"
    predict_files(predictor, images[1:], out, save=("labels",))
    with pytest.raises(OutputError, match=r"b\.png and 1 more: there already; --overwrite"):
        predict_files(predictor, images, out, save=("labels",))
    assert not (out / "labels" / "a.png").exists()

    expected = write_image(tmp_path / "b.png", seed=5)
    predict_files(predictor, images, out, save=("labels",), overwrite=True)
    assert np.array_equal(np.array(Image.open(out / "labels" / "b.png")), expected)


def test_output_that_is_a_file(predictor, tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(OutputError, match="a file is in the way"):
        predict_files(predictor, [tmp_path / "a.png"], tmp_path / "a.png")


def test_output_that_cannot_be_written(predictor, tmp_path, monkeypatch):
    write_image(tmp_path / "a.png")
    # Root may write anywhere, so the permission is taken away where it is asked for.
    monkeypatch.setattr("openseg.engine.files.os.access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission to write"):
        predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out")


@pytest.mark.parametrize("kind", ["labels", "confidence"])
def test_a_full_disk_leaves_no_half_file(kind, predictor, tmp_path, monkeypatch):
    write_image(tmp_path / "a.png")

    def full(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"a\.png: cannot be written: No space left on device$"):
        predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out", save=(kind,))
    assert list((tmp_path / "out" / kind).iterdir()) == []


def test_overlays_mix_the_image_with_the_colours(predictor, tmp_path):
    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / "a.png")
    predict_files(predictor, [tmp_path / "a.png"], tmp_path / "out", save=("overlay",))
    pixels = np.array(Image.open(tmp_path / "out" / "overlay" / "a.jpg")).astype(int)
    expected = (np.array([255, 0, 0]) + PALETTE[0]) / 2
    assert abs(pixels - expected).max() <= 4  # JPEG of one flat colour: chroma is rounded


def test_find_images(tmp_path, monkeypatch):
    for name in ("in/b.PNG", "in/a.jpg", "in/deep/d.png", "other/c[1].png"):
        write_image(tmp_path / name)
    (tmp_path / "in" / "notes.txt").write_text("")
    monkeypatch.chdir(tmp_path)

    def found(*inputs):
        return [path.as_posix() for path in find_images(inputs)]

    assert found("in") == ["in/a.jpg", "in/b.PNG"]
    assert found("in/**/*.png") == ["in/deep/d.png"]
    assert found("other/c[1].png") == ["other/c[1].png"]
    assert found("in/a.jpg", "in", str(tmp_path / "in" / "a.jpg")) == ["in/a.jpg", "in/b.PNG"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nothing.png", r"nothing\.png: no such file or folder"),
        ("*.gif", r"\*\.gif: no such file or folder, and no file matches"),
        ("empty", "empty: no image in this folder"),
    ],
)
def test_inputs_without_an_image(word, message, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message):
        find_images([word])


def test_two_images_of_one_name(tmp_path):
    write_image(tmp_path / "x" / "a.png")
    write_image(tmp_path / "y" / "a.jpg")
    with pytest.raises(DataError, match=r"x/a\.png and .*y/a\.jpg: .* the same name \(a\)"):
        find_images([str(tmp_path / "x"), str(tmp_path / "y")])
