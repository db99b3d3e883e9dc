# SPDX-License-Identifier: MIT
"""The six published sets: layouts, splits, values of the files, and what is said where one errs."""

import numpy as np
import pytest

from openseg.build import build_dataset
from openseg.config import load_config
from openseg.data import (
    ADE20K,
    LIP,
    Cityscapes,
    COCOStuff10K,
    DatasetInfo,
    PascalContext,
    PascalVOC,
    TrainTransform,
)
from openseg.errors import DataError
from tests.data import miniature

SETS = {
    "cityscapes": (Cityscapes, 19),
    "ade20k": (ADE20K, 150),
    "lip": (LIP, 20),
    "pascal_context": (PascalContext, 59),
    "pascal_voc": (PascalVOC, 21),
    "coco_stuff_10k": (COCOStuff10K, 171),
}
each_set = pytest.mark.parametrize("name", SETS)


def names(dataset):
    return [pair.name for pair in dataset.listing.pairs]


@each_set
def test_classes_have_names_colours_and_values(name, tmp_path):
    reader, classes = SETS[name]
    info = reader(miniature.TREES[name](tmp_path), "train").info
    assert info.name == name
    assert info.num_classes == classes == len(set(info.classes)) == len(info.palette)
    assert list(info.label_ids) == miniature.VALUES[name][0]
    assert all(text == text.strip() and text for text in info.classes)


@each_set
def test_values_become_train_ids(name, tmp_path):
    sample = SETS[name][0](miniature.TREES[name](tmp_path), "val").load(0)
    np.testing.assert_array_equal(sample.label, miniature.train_ids(name))
    assert sample.image.shape == (*miniature.SIZE, 3)


@each_set
def test_a_value_that_is_no_id_is_an_error(name, tmp_path):
    dataset = SETS[name][0](miniature.TREES[name](tmp_path), "val")
    path = dataset.listing.pairs[0].label
    stray = miniature.VALUES[name][2]
    values = miniature.label(name)
    values[3, 4:6] = stray
    miniature.write(path, values)
    ids = {
        "cityscapes": "0 to 33, 255",
        "ade20k": "0 to 150",
        "lip": "0 to 19, 255",
        "pascal_context": "0 to 59",
        "pascal_voc": "0 to 20, 255",
        "coco_stuff_10k": "0 to 182",
    }
    text = (
        rf"{path}: label values {stray} \(2 pixels\) are no ids of {name}; expected {ids[name]}: "
    )
    with pytest.raises(DataError, match=text + "put the published files here"):
        dataset.load(0)


def test_coco_ids_that_no_object_has_are_ignored(tmp_path):
    root = miniature.coco_stuff_10k(tmp_path)
    values = np.resize(np.array(miniature.COCO_UNUSED, dtype=np.uint8), miniature.SIZE)
    miniature.write(root / "val" / "label" / "val_0.png", values)
    assert (COCOStuff10K(root, "val").load(0).label == 255).all()


@each_set
def test_the_layout_of_old_prepared_trees(name, tmp_path):
    root = miniature.prepared(name, tmp_path)
    dataset = SETS[name][0](root, "train+val")
    assert names(dataset) == ["train_0", "train_1", "val_0", "val_1"]
    np.testing.assert_array_equal(dataset.load(3).label, miniature.train_ids(name))
    assert [alone.file.name for alone in dataset.listing.alone] == ["unlabelled.jpg"] * 2
    (root / "val" / "image" / "val_1.jpg").unlink()
    with pytest.raises(DataError, match=r"val_1\.png: there is no image for it"):
        SETS[name][0](root, "val")


@each_set
def test_a_configuration_names_the_set(name, tmp_path):
    root = miniature.TREES[name](tmp_path)
    words = [f"data.name={name}", f"data.root={root}"]
    config = load_config("scenes/ocrnet_r18", words)
    assert type(build_dataset(config, "train+val")) is SETS[name][0]


@each_set
def test_a_root_or_split_that_is_not_there(name, tmp_path):
    with pytest.raises(DataError, match=rf"nothing: .*expected the root of {name}"):
        SETS[name][0](tmp_path / "nothing", "train")
    reader, root = SETS[name][0], miniature.TREES[name](tmp_path / "data")
    with pytest.raises(
        DataError, match=r"there is no split 'training' of this set; expected .*val"
    ):
        reader(root, "training")
    if name == "pascal_voc":
        message = r"neither ImageSets/Segmentation/train\.txt nor train/label; expected the root"
    else:
        message = rf"{tmp_path} has data: check the root|openseg\.prepare"
    with pytest.raises(DataError, match=message):
        reader(tmp_path, "train")


def test_cityscapes_splits_and_names(tmp_path):
    root = miniature.cityscapes(tmp_path)
    assert names(Cityscapes(root, "train")) == [
        "aachen_000000_000019_leftImg8bit",
        "aachen_000001_000019_leftImg8bit",
    ]
    coarse = Cityscapes(root, "coarse")
    assert {pair.label.name.split("_")[3] for pair in coarse.listing.pairs} == {"gtCoarse"}
    assert len(Cityscapes(root, "train+val+coarse")) == 6
    test = Cityscapes(root, "test").load(0)
    assert test.label is None
    assert test.name == "bonn_000000_000019_leftImg8bit"


def test_cityscapes_instances_in_both_layouts(tmp_path):
    values = miniature.label("cityscapes").astype(np.uint16) * 1000 + 7
    city = "gtFine/val/aachen/aachen_000001_000019_gtFine_instanceIds.png"
    miniature.write(miniature.cityscapes(tmp_path / "published") / city, values)
    original = Cityscapes(tmp_path / "published", "train+val")
    np.testing.assert_array_equal(original.load_instances(3), values)
    with pytest.raises(
        DataError, match=r"aachen_000000_000019_gtFine_instanceIds\.png: there is no"
    ):
        original.load_instances(2)
    root = miniature.prepared("cityscapes", tmp_path / "prepared")
    miniature.write(root / "val" / "instance" / "val_1.png", values)
    np.testing.assert_array_equal(Cityscapes(root, "train+val").load_instances(3), values)


def test_cityscapes_label_of_another_city_is_missed(tmp_path):
    root = miniature.cityscapes(tmp_path)
    label = root / "gtFine" / "val" / "aachen" / "aachen_000000_000019_gtFine_labelIds.png"
    label.unlink()
    expected = r"gtFine/val/aachen/aachen_000000_000019_gtFine_labelIds\.\*"
    with pytest.raises(DataError, match=rf"019_leftImg8bit\.png: .*no label.*{expected}"):
        Cityscapes(root, "val")


def test_test_images_of_a_prepared_tree(tmp_path):
    root = miniature.prepared("cityscapes", tmp_path)
    miniature.write(root / "test" / "bonn" / "bonn_0_leftImg8bit.png", miniature.image())
    assert names(Cityscapes(root, "test")) == ["bonn_0_leftImg8bit"]


@pytest.mark.parametrize("reader", [LIP, Cityscapes])
def test_test_images_whose_results_would_have_one_name(tmp_path, reader):
    for folder in "ab":
        miniature.write(tmp_path / "test" / folder / "x.png", miniature.image())
    with pytest.raises(DataError, match=r"test/a/x\.png and .*test/b/x\.png: .* same name \(x\)"):
        reader(tmp_path, "test")


@pytest.mark.parametrize("twice", [False, True])
def test_lip_in_either_depth(tmp_path, twice):
    root = miniature.lip(tmp_path, twice)
    assert names(LIP(root, "train")) == ["0_7", "1_7"]
    assert LIP(root, "test").load(0).label is None


def test_voc_follows_its_lists(tmp_path):
    root = miniature.pascal_voc(tmp_path)
    assert names(PascalVOC(root, "trainaug")) == ["2007_000003", "2007_000001", "2007_000000"]
    assert names(PascalVOC(root, "train+val")) == ["2007_000000", "2007_000001", "2007_000002"]
    miniature.write_list(root / "ImageSets" / "Segmentation" / "train.txt", "2007_000009")
    with pytest.raises(DataError, match=r"2007_000009.*there is no image for it"):
        PascalVOC(root, "train")
    with pytest.raises(DataError, match=r"'test'.*train, trainaug, val"):
        PascalVOC(root, "test")


def test_context_with_its_background(tmp_path):
    root = miniature.pascal_context(tmp_path)
    dataset = PascalContext(root, "train", background=True)
    assert dataset.info.num_classes == 60
    assert dataset.info.classes[0] == "background"
    np.testing.assert_array_equal(dataset.load(0).label, miniature.label("pascal_context"))
    words = ["data.name=pascal_context", f"data.root={root}", "data.background=true"]
    built = build_dataset(load_config("scenes/ocrnet_r18", words), "train")
    assert built.info.num_classes == 60


def test_labels_of_sbd_have_to_be_converted(tmp_path):
    root = miniature.pascal_voc(tmp_path)
    (root / "ImageSets" / "Segmentation" / "trainaug.txt").unlink()
    message = rf"prepare pascal_voc --root {root} --sbd DIR --output FOLDER"
    with pytest.raises(DataError, match=message):
        PascalVOC(root, "trainaug")
    assert len(PascalVOC(root, "train")) == 2


@pytest.mark.parametrize("name", ["pascal_context", "coco_stuff_10k"])
def test_what_has_to_be_converted_says_how(name, tmp_path):
    message = rf"python -m openseg\.prepare {name} --root {tmp_path} --output"
    with pytest.raises(DataError, match=message):
        SETS[name][0](tmp_path, "train")


def test_a_list_keeps_the_samples_that_it_names(tmp_path):
    root = miniature.ade20k(tmp_path)
    listed = tmp_path / "few.txt"
    miniature.write_list(listed, "ADE_train_00000002")
    assert names(ADE20K(root, "train", only=listed)) == ["ADE_train_00000002"]
    words = ["data.name=ade20k", f"data.root={root}", f"data.train_list={listed}"]
    config = load_config("scenes/ocrnet_r18", words)
    assert len(build_dataset(config, "train", only=config.data.train_list)) == 1
    miniature.write_list(listed, "ADE_train_00000002.png")  # as openseg.pytorch has them
    assert names(ADE20K(root, "train", only=listed)) == ["ADE_train_00000002"]
    miniature.write_list(listed, "ADE_train_00000002.jpg")
    with pytest.raises(DataError, match=r"'ADE_train_00000002\.jpg' is no sample.*without folder"):
        ADE20K(root, "train", only=listed)
    with pytest.raises(DataError, match="the list cannot be read"):
        ADE20K(root, "train", only=tmp_path / "gone.txt")
    listed.write_text("\n")
    with pytest.raises(DataError, match=r"few\.txt: names no sample"):
        ADE20K(root, "train", only=listed)


def test_left_and_right_of_lip_trade_places_in_a_mirrored_image(tmp_path):
    """By name, so that neither the pairs nor the classes can be off by one."""
    dataset = LIP(miniature.lip(tmp_path), "train")
    mirrored = {"left": "right", "right": "left"}

    def mirror(text):
        side, _, part = text.partition(" ")
        return f"{mirrored.get(side, side)} {part}".strip()

    classes = dataset.info.classes
    expected = np.array([*map(classes.index, map(mirror, classes))], dtype=np.uint8)
    assert (expected != np.arange(20)).sum() == 6
    transform = TrainTransform(
        miniature.SIZE,
        scale_range=(1, 1),
        aspect_range=(1, 1),
        flip_pairs=dataset.info.flip_pairs,
    )
    sample = dataset.load(0)
    table = np.concatenate([expected, np.full(236, 255, dtype=np.uint8)])
    for seed in range(20):
        _, label = transform(sample, np.random.default_rng(seed))
        if not np.array_equal(label, sample.label):
            np.testing.assert_array_equal(label, table[sample.label[:, ::-1]])
            return
    pytest.fail("no image was mirrored")


def test_label_ids_are_one_for_each_class():
    with pytest.raises(DataError, match="1 label_ids for 2 classes"):
        DatasetInfo("x", ("a", "b"), ((0, 0, 0),) * 2, label_ids=(7,))
