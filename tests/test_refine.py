# SPDX-License-Identifier: MIT
"""Offsets in files, and masks of instances, in the layouts of the published scripts of SegFix.

What those scripts do is written down here once more, by their bilinear sampling.
"""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.io import loadmat

from openseg import refine
from openseg.build.refinement import PredictedOffsets
from openseg.data import BorderOffsets, Normalize
from openseg.data.offset_files import read_offsets, write_offsets
from openseg.data.offsets import border_offsets
from openseg.engine.checkpoints import save_checkpoint
from openseg.errors import DataError, OutputError
from openseg.models import create_model
from tests.data import miniature
from tests.data.test_borders import Squares

SIZE = (24, 30)
NAME = "bonn_000000_000019_leftImg8bit"


def run(monkeypatch, entry_point, *words):
    monkeypatch.setattr(sys, "argv", ["openseg", *map(str, words)])
    return entry_point.main()


def draw_offsets(seed=0):
    """int64 [24, 30, 2] of -1, 0 and 1; none in half of the pixels."""
    rng = np.random.default_rng(seed)
    return rng.integers(-1, 2, (*SIZE, 2)) * rng.integers(0, 2, (*SIZE, 1))


def published_shift(values, offsets, scale):
    """`values` [H, W] sampled where offsets [H, W, 2] point to, as float [H, W]."""
    height, width = values.shape
    rows = torch.arange(height)[:, None] + scale * torch.from_numpy(offsets)[..., 0]
    columns = torch.arange(width) + scale * torch.from_numpy(offsets)[..., 1]
    grid = torch.stack([columns / (width - 1), rows / (height - 1)], -1) * 2 - 1
    maps = torch.from_numpy(values.astype(np.float64))[None, None]
    shifted = F.grid_sample(
        maps, grid[None].double(), "bilinear", padding_mode="border", align_corners=True
    )
    return shifted[0, 0].numpy()


@pytest.fixture
def tree(tmp_path):
    """Offsets and label maps of two images, and instances of both, one of them without any."""
    rng = np.random.default_rng(9)
    for index, name in enumerate((NAME, NAME.replace("19", "20"))):
        # As the published test writes them: int64, whatever they hold.
        miniature.write_matlab(tmp_path / "offsets" / f"{name}.mat", mat=draw_offsets(index))
        labels = rng.choice(np.array([7, 26, 255], dtype=np.uint8), SIZE)
        miniature.write(tmp_path / "labels" / f"{name}.png", labels)
    masks = tmp_path / "instances" / "masks"
    for number, depth in enumerate((1, 255)):
        mask = (rng.random(SIZE) < 0.5).astype(np.uint8) * depth
        miniature.write(masks / f"{NAME}_{number}.png", mask)
    Image.fromarray(rng.random(SIZE) < 0.5).save(masks / f"{NAME}_2.png")  # one bit a pixel
    lines = [f"masks/{NAME}_{number}.png {26 + number} 0.{number}5\n" for number in range(3)]
    (tmp_path / "instances" / f"{NAME}_pred.txt").write_text("".join(lines), encoding="utf-8-sig")
    (tmp_path / "instances" / f"{NAME.replace('19', '20')}_pred.txt").write_text("")
    return tmp_path


def read(path):
    with Image.open(path) as file:
        return np.array(file)


def test_label_maps_are_mended_by_published_offsets(tree, monkeypatch, capsys):
    words = ("--offsets", tree / "offsets", "--labels", tree / "labels", "--output", tree / "out")
    run(monkeypatch, refine, *words)
    assert "2 label maps, " in capsys.readouterr().out
    changed = 0
    for path in (tree / "labels").iterdir():
        before, after = read(path), read(tree / "out" / path.name)
        offsets = loadmat(tree / "offsets" / f"{path.stem}.mat")["mat"]
        for value in (7, 26, 255):  # the published script samples each class by itself
            share = published_shift(before == value, offsets, scale=2)
            np.testing.assert_array_equal(after == value, share > 0.5)
        changed += (before != after).sum()
    assert changed > 50


def test_instances_are_mended_as_by_the_published_script(tree, monkeypatch, capsys):
    source, output = tree / "instances", tree / "out"
    run(monkeypatch, refine, "--offsets", tree / "offsets", "--instances", source,
        "--output", output)  # fmt: skip
    assert "2 lists of instances, " in capsys.readouterr().out
    offsets = draw_offsets(0)
    for number in range(3):
        name = f"masks/{NAME}_{number}.png"
        before, after = read(source / name) > 0, read(output / name)
        assert after.dtype == np.uint8
        expected = 255 * (published_shift(before, offsets, scale=1) > 0.5)
        np.testing.assert_array_equal(after, expected)
        assert (expected != 255 * before).any()
    for path in source.glob("*_pred.txt"):
        assert (output / path.name).read_text() == path.read_text()


@pytest.fixture
def segfix(tmp_path):
    """A checkpoint of a SegFix network with random weights."""
    torch.manual_seed(1)
    model = create_model("segfix", "resnet18", 2, output_stride=16)
    contents = {"model": model.arguments, "state_dict": model.state_dict(), "ema": None}
    meta = {"normalize": Normalize().to_dict()}
    rest = {"training": None, "config": None, "metrics": {}}
    save_checkpoint(tmp_path / "segfix.pt", contents | {"meta": meta} | rest)
    return tmp_path / "segfix.pt"


def test_offsets_are_written_as_published_and_serve_in_place_of_the_network(
    tree, segfix, monkeypatch, capsys
):
    images = tree / "images"
    for path in (tree / "labels").iterdir():
        miniature.write(images / path.name, miniature.image(3, SIZE))
    run(monkeypatch, refine, "--checkpoint", segfix, images, "--write-offsets",
        "--output", tree / "kept")  # fmt: skip
    assert capsys.readouterr().out == f"2 files of offsets: {tree / 'kept'}\n"
    kept = loadmat(tree / "kept" / f"{NAME}.mat")["mat"]
    predicted = PredictedOffsets(segfix, "cpu")("", miniature.image(3, SIZE))
    np.testing.assert_array_equal(kept, predicted.movedim(0, 2))
    assert 0 < kept.any(2).mean() < 1
    for form, folder in (("--labels", "labels"), ("--instances", "instances")):
        words = (form, tree / folder, "--output")
        run(monkeypatch, refine, *words, tree / "by_file" / folder, "--offsets", tree / "kept")
        run(monkeypatch, refine, *words, tree / "by_net" / folder, "--checkpoint", segfix, images)
        written = [p for p in (tree / "by_net" / folder).rglob("*") if p.is_file()]
        assert len(written) == {"labels": 2, "instances": 5}[folder]
        for path in written:
            other = tree / "by_file" / path.relative_to(tree / "by_net")
            assert path.read_bytes() == other.read_bytes()


def test_offsets_survive_their_file(tmp_path):
    offsets = draw_offsets()
    write_offsets(tmp_path / "a.b.mat", offsets)
    np.testing.assert_array_equal(read_offsets(tmp_path / "a.b.mat"), offsets)


def test_published_targets_are_read_in_place_of_computed_ones(tmp_path):
    dataset = Squares()
    distance, half = border_offsets(dataset.label)
    contents = {"depth": distance, "dir_deg": half, "deg_reduce": 2}
    miniature.write_matlab(tmp_path / "city" / "a.mat", **contents | {"depth": distance + 1})
    target = BorderOffsets(dataset, tmp_path).load(0).label
    np.testing.assert_array_equal(target[..., 1], distance + 1)
    np.testing.assert_array_equal(target[..., 2], half)
    assert not list(tmp_path.rglob("*.png"))
    miniature.write_matlab(tmp_path / "city" / "a.mat", **contents | {"deg_reduce": 4})
    np.testing.assert_array_equal(BorderOffsets(dataset, tmp_path).load(0).label[..., 2], 2 * half)
    miniature.write_matlab(tmp_path / "city" / "a.mat", **contents | {"depth": distance[1:]})
    with pytest.raises(DataError, match=r"a\.mat: expected depth and dir_deg of one size"):
        BorderOffsets(dataset, tmp_path).load(0)
    miniature.write_matlab(tmp_path / "city" / "a.mat", mat=distance)
    with pytest.raises(DataError, match=r"a\.mat: expected depth and dir_deg"):
        BorderOffsets(dataset, tmp_path).load(0)


def resize(tree):
    write_offsets(tree / "offsets" / f"{NAME}.mat", np.zeros((24, 31, 2), dtype=int))


def halve(tree):
    miniature.write_matlab(tree / "offsets" / f"{NAME}.mat", mat=draw_offsets() / 2)


def flatten(tree):
    miniature.write_matlab(tree / "offsets" / f"{NAME}.mat", mat=draw_offsets()[..., 0])


def take_targets(tree):
    miniature.write_matlab(tree / "offsets" / f"{NAME}.mat", depth=1, dir_deg=1, deg_reduce=2)


def scribble(tree):
    (tree / "offsets" / f"{NAME}.mat").write_bytes(b"nothing")


def lose(tree):
    (tree / "offsets" / f"{NAME}.mat").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (resize, r"19_leftImg8bit\.png: 30×24 in mode L given, 31×24 as .*19_leftImg8bit\.mat"),
        (halve, r"\.mat: 'mat' of shape \(24, 30, 2\) and type float64 given; expected whole"),
        (flatten, r"\.mat: 'mat' of shape \(24, 30\) and type int64 given; expected whole"),
        (take_targets, r"\.mat: has no offsets 'mat'; expected a file of predicted offsets"),
        (scribble, r"\.mat: cannot be read as a MATLAB file"),
        (lose, r"\.mat: there is no such file \(1 of 2 are missing\); expected the offsets of"),
    ],
)
def test_files_of_offsets_that_do_not_fit(tree, monkeypatch, damage, message):
    damage(tree)
    words = ("--offsets", tree / "offsets", "--labels", tree / "labels", "--output", tree / "out")
    with pytest.raises(DataError, match=message):
        run(monkeypatch, refine, *words)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("masks/a.png 26", r"line 4: 'masks/a\.png 26' given, the path of a mask, its class and"),
        ("../a.png 26 0.5", r"line 4: '\.\./a\.png' given, a path below the folder"),
        ("masks/gone.png 26 0.5", r"line 4: there is no mask .*masks/gone\.png"),
    ],
)
def test_lists_of_instances_are_looked_at_first(tree, monkeypatch, line, message):
    with open(tree / "instances" / f"{NAME}_pred.txt", "a") as file:
        file.write(f"{line}\n")
    words = ("--offsets", tree / "offsets", "--instances", tree / "instances", "--output")
    with pytest.raises(DataError, match=rf"{NAME}_pred\.txt, {message}"):
        run(monkeypatch, refine, *words, tree / "out")
    assert not (tree / "out").exists()


def test_masks_that_do_not_fit(tree, monkeypatch):
    words = ("--offsets", tree / "offsets", "--instances", tree / "instances", "--output")
    path = tree / "instances" / "masks" / f"{NAME}_1.png"
    miniature.write(path, np.zeros((24, 30, 3), dtype=np.uint8))
    with pytest.raises(DataError, match=r"_1\.png: 30×24 in mode RGB given.*one channel"):
        run(monkeypatch, refine, *words, tree / "out")
    path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"_1\.png: cannot be read as an image"):
        run(monkeypatch, refine, *words, tree / "out")


def test_what_is_there_already_and_what_is_not(tree, monkeypatch):
    words = ("--offsets", tree / "offsets", "--instances", tree / "instances", "--output")
    run(monkeypatch, refine, *words, tree / "out")
    with pytest.raises(OutputError, match="there already; --overwrite"):
        run(monkeypatch, refine, *words, tree / "out")
    run(monkeypatch, refine, *words, tree / "out", "--overwrite")
    with pytest.raises(DataError, match=r"labels: .*expected NAME_pred\.txt files"):
        run(monkeypatch, refine, "--offsets", tree / "offsets", "--instances", tree / "labels",
            "--output", tree / "none")  # fmt: skip
    with pytest.raises(DataError, match="gone: there is no such folder; expected offsets"):
        run(monkeypatch, refine, "--offsets", tree / "gone", "--labels", tree / "labels",
            "--output", tree / "none")  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--labels", "a"), "one of the arguments --checkpoint --offsets is required"),
        (("--offsets", "a"), "one of the arguments --labels --instances --write-offsets is"),
        (("--offsets", "a", "--labels", "b", "image.png"), "IMAGE: belongs to --checkpoint FILE"),
        (("--checkpoint", "a", "--labels", "b"), "IMAGE: belongs to --checkpoint FILE"),
        (("--offsets", "a", "--write-offsets"), "--write-offsets, --slide: belong to --checkpoint"),
    ],
)
def test_words_that_do_not_go_together(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit):
        run(monkeypatch, refine, *words, "--output", "c")
    assert message in capsys.readouterr().err
