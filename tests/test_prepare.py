# SPDX-License-Identifier: MIT
"""Conversion of published files: what comes out, and that sources stay as they were."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from openseg import prepare
from openseg.data import COCOStuff10K, PascalContext, PascalVOC
from openseg.data.preparation import Conversion, conversion
from openseg.errors import DataError, OpensegError, OutputError
from tests.data import miniature

MAPS = np.arange(24 * 32).reshape(miniature.SIZE)


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Run the entry point; gives the output folder and sees that the source is left alone."""

    def call(dataset, *words, root=tmp_path / "source"):
        before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
        output = tmp_path / "output"
        command = ["prepare", dataset, "--root", root, "--output", output, *words]
        monkeypatch.setattr(sys, "argv", [*map(str, command)])
        try:
            prepare.main()
        finally:
            assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
        return output

    return call


def test_coco_stuff(tmp_path, prepared, capsys):
    miniature.published_coco_stuff_10k(tmp_path / "source")
    output = prepared("coco_stuff_10k")
    printed = capsys.readouterr()
    assert "preparing train: 2/2" in printed.err
    assert f"python -m openseg.check_data --root {output} data.name=coco_stuff_10k" in printed.out
    train, val = (COCOStuff10K(output, split) for split in ("train", "val"))
    assert [pair.name for pair in train.listing.pairs] == ["COCO_0", "COCO_1"]
    np.testing.assert_array_equal(train.load(0).label, miniature.train_ids("coco_stuff_10k"))
    stored = np.array(Image.open(output / "val" / "label" / "COCO_2.png"))
    np.testing.assert_array_equal(stored, np.roll(miniature.label("coco_stuff_10k"), 2))
    source = tmp_path / "source" / "images" / "COCO_2.jpg"
    assert (output / "val" / "image" / "COCO_2.jpg").read_bytes() == source.read_bytes()
    assert len(val) == 1


def context(root):
    for number in range(3):
        miniature.write(root / "JPEGImages" / f"2008_00000{number}.jpg", miniature.image(number))
    return root


@pytest.mark.parametrize("folder", ["", "PytorchEncoding"])
@pytest.mark.parametrize("legacy", [False, True])
def test_context_from_masks(tmp_path, prepared, folder, legacy):
    root = context(tmp_path / "source")
    (root / folder).mkdir(exist_ok=True)
    masks = [Image.fromarray(((MAPS + number) % 60).astype(np.uint8)) for number in range(3)]
    contents = {
        "train": {2008000001: masks[1], 2008000000: masks[0]},
        "val": {2008000002: masks[2]},
    }
    for split, by_id in contents.items():
        new = not legacy
        path = root / folder / f"{split}.pth"
        torch.save(by_id, path, _use_new_zipfile_serialization=new)
    output = prepared("pascal_context")
    for split, name, number in [("train", "2008_000000", 0), ("val", "2008_000002", 2)]:
        dataset = PascalContext(output, split, background=True)
        assert dataset.load(0).name == name
        np.testing.assert_array_equal(dataset.load(0).label, (MAPS + number) % 60)


def test_masks_run_no_code(tmp_path, prepared):
    root = context(tmp_path / "source")

    class Trap:
        def __reduce__(self):
            return print, ("run",)

    for split in ("train", "val"):
        torch.save({2008000000: Trap()}, root / f"{split}.pth")
    with pytest.raises(DataError, match=r"train\.pth: the masks cannot be read"):
        prepared("pascal_context")


def test_context_from_matlab(tmp_path, prepared):
    root = context(tmp_path / "source")
    for number in range(3):
        name = f"2008_00000{number}"
        label_map = ((MAPS + number) % 460).astype(np.uint16)
        miniature.write_matlab(root / "trainval" / f"{name}.mat", LabelMap=label_map)
    miniature.write_list(root / "ImageSets" / "Main" / "train.txt", "2008_000000", "2008_000001")
    miniature.write_list(root / "ImageSets" / "Main" / "val.txt", "2008_000002")
    sample = PascalContext(prepared("pascal_context"), "train").load(1)
    classes = PascalContext(tmp_path / "output", "train").info.classes
    # By the published list of 459 names: 2 aeroplane, 284 person, 360 sky, 420 tree, 458 wood.
    for kind, name in {2: "aeroplane", 284: "person", 360: "sky", 420: "tree", 458: "wood"}.items():
        found = sample.label[kind == (MAPS + 1) % 460]
        assert found.size
        assert {classes[train_id] for train_id in found} == {name}
    assert len(np.unique(sample.label)) == 60  # and 255
    assert (sample.label[(MAPS + 1) % 460 == 3] == 255).all()


def test_context_without_annotations(tmp_path, prepared):
    context(tmp_path / "source")
    with pytest.raises(
        DataError, match=r"neither masks \(train\.pth and val\.pth\) nor label maps"
    ):
        prepared("pascal_context")


@pytest.fixture
def voc(tmp_path):
    """VOC2012 with one image of its own in each list, and SBD with one more, and VOC's val."""
    root, sbd = tmp_path / "source", tmp_path / "sbd"
    lists = root / "ImageSets" / "Segmentation"
    miniature.write_list(lists / "train.txt", "2007_1")
    miniature.write_list(lists / "val.txt", "2007_2")
    miniature.write_list(sbd / "train.txt", "2007_1", "2008_3")
    miniature.write_list(sbd / "val.txt", "2007_2")
    for number, name in enumerate(("2007_1", "2007_2", "2008_3")):
        miniature.write(root / "JPEGImages" / f"{name}.jpg", miniature.image(number))
        values = np.full(miniature.SIZE, number, dtype=np.uint8)
        if number < 2:
            miniature.write(root / "SegmentationClass" / f"{name}.png", values)
        miniature.write_matlab(sbd / "cls" / f"{name}.mat", GTcls={"Segmentation": values + 10})
    return root, sbd


def test_voc_with_sbd(voc, prepared):
    output = prepared("pascal_voc", "--sbd", voc[1])
    train = PascalVOC(output, "trainaug")
    assert [pair.name for pair in train.listing.pairs] == ["2007_1", "2008_3"]
    assert [np.unique(train.load(i).label).tolist() for i in range(2)] == [[0], [12]]
    assert np.unique(PascalVOC(output, "val").load(0).label).tolist() == [1]


@pytest.mark.parametrize("words", [["pascal_voc"], ["coco_stuff_10k", "--sbd", "x"]])
def test_sbd_belongs_to_voc(tmp_path, prepared, words, capsys):
    with pytest.raises(SystemExit):
        prepared(*words)
    assert "--sbd DIR belongs to pascal_voc" in capsys.readouterr().err


def test_an_interrupted_conversion_goes_on(tmp_path, prepared, monkeypatch, capsys):
    miniature.published_coco_stuff_10k(tmp_path / "source")
    read, output = conversion.load_matlab, tmp_path / "output"
    calls = []

    def interrupted(path, name):
        calls.append(path.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(path, name)

    monkeypatch.setattr(conversion, "load_matlab", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared("coco_stuff_10k")
    assert not (output / "train").exists()
    assert [path.name for path in output.rglob("*.png")] == ["COCO_0.png"]
    prepared("coco_stuff_10k")
    assert calls == ["COCO_0.mat", "COCO_1.mat", "COCO_1.mat", "COCO_2.mat"]
    assert sorted(path.name for path in output.iterdir()) == ["train", "val"]
    assert not [path for path in output.rglob("*") if path.name.startswith(".")]
    capsys.readouterr()
    prepared("coco_stuff_10k")
    assert len(calls) == 4
    assert "train: 2 samples were there" in capsys.readouterr().out
    miniature.write_list(tmp_path / "source" / "imageLists" / "train.txt", "COCO_0")
    with pytest.raises(OutputError, match="holds 2 other labels than the 1 of the source"):
        prepared("coco_stuff_10k")


def test_links_instead_of_copies(tmp_path, prepared):
    root = miniature.published_coco_stuff_10k(tmp_path / "source")
    output = prepared("coco_stuff_10k", "--link")
    link = output / "train" / "image" / "COCO_0.jpg"
    assert link.is_symlink()
    assert link.resolve() == (root / "images" / "COCO_0.jpg").resolve()
    assert COCOStuff10K(output, "train").load(0).image.shape == (24, 32, 3)


def test_an_output_in_the_source_is_refused(tmp_path, prepared):
    miniature.published_coco_stuff_10k(tmp_path)
    with pytest.raises(OutputError, match="lies in the source"):
        prepared("coco_stuff_10k", root=tmp_path)


def remove(root):
    (root / "annotations" / "COCO_1.mat").unlink()


def truncate(root):
    path = root / "annotations" / "COCO_0.mat"
    path.write_bytes(path.read_bytes()[:200])


def rename(root):
    miniature.write_matlab(root / "annotations" / "COCO_0.mat", T=MAPS)


def exceed(root):
    miniature.write_matlab(root / "annotations" / "COCO_0.mat", S=MAPS.astype(np.uint16))


def halve(root):
    miniature.write_matlab(root / "annotations" / "COCO_0.mat", S=(MAPS % 256) / 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove, r"COCO_1\.mat: there is no such file \(1 of 6 are missing\)"),
        (truncate, r"COCO_0\.mat: cannot be read as a MATLAB file"),
        (rename, r"COCO_0\.mat: has no label map 'S'"),
        (exceed, r"COCO_0\.mat: label values 0 to 767; expected whole numbers, 0 to 255"),
        (halve, r"COCO_0\.mat: label values 0\.0 to 127\.5; expected whole numbers"),
    ],
)
def test_damage_is_named(tmp_path, prepared, damage, message):
    damage(miniature.published_coco_stuff_10k(tmp_path / "source"))
    with pytest.raises(DataError, match=message):
        prepared("coco_stuff_10k")
    assert not list(tmp_path.glob("output/*/label/*.png"))


def test_without_scipy_the_extra_is_named(tmp_path, prepared, monkeypatch):
    miniature.published_coco_stuff_10k(tmp_path / "source")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(OpensegError, match=r'pip install "openseg\[datasets\]"'):
        prepared("coco_stuff_10k")


def test_a_missing_root(tmp_path, prepared):
    with pytest.raises(DataError, match="gone: there is no such folder"):
        prepared("coco_stuff_10k", root=tmp_path / "gone")


def test_a_conversion_is_named_after_its_image(tmp_path):
    assert Conversion("train", tmp_path / "a.b.jpg", lambda: MAPS).name == "a.b"
