# SPDX-License-Identifier: MIT
"""FolderDataset: pairing, id maps, and an error with a remedy for each fault of a folder."""

import numpy as np
import pytest
from PIL import Image

from openseg.data import FolderDataset, open_image
from openseg.errors import DataError

CLASSES = ("road", "tree", "car")


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def image(height=4, width=6):
    return np.full((height, width, 3), 90, dtype=np.uint8)


def label(*values, height=4, width=6):
    return np.resize(np.array(values, dtype=np.uint8), (height, width))


@pytest.fixture
def root(tmp_path):
    for name, suffix in (("b", ".jpg"), ("a", ".webp"), ("c.1", ".PNG")):
        write(tmp_path / "images" / "train" / f"{name}{suffix}", image())
        write(tmp_path / "labels" / "train" / f"{name}.png", label(0, 1, 2, 255))
    return tmp_path


def test_pairs_are_matched_by_stem_and_sorted(root):
    dataset = FolderDataset(root, "train", CLASSES)
    assert [dataset[i].name for i in range(len(dataset))] == ["a", "b", "c.1"]
    sample = dataset.load(0)
    assert sample.image.shape == (4, 6, 3)
    assert sample.image.dtype == np.uint8
    assert sample.label.dtype == np.uint8
    np.testing.assert_array_equal(sample.label, label(0, 1, 2, 255))
    assert dataset.info.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))


def test_a_tree_that_was_prepared_for_the_old_code(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "val" / "image" / f"{name}.jpg", image())
    write(tmp_path / "val" / "label" / "b.png", label(0, 1, 2, 255))
    dataset = FolderDataset(tmp_path, "val", CLASSES)
    assert [sample.name for sample in (dataset[0],)] == ["b"]
    assert len(dataset) == 1
    np.testing.assert_array_equal(dataset.load(0).label, label(0, 1, 2, 255))


def test_half_of_the_size(tmp_path):
    """Of images and of labels, or of images alone where the labels have it; else an error."""
    pixels = np.arange(6 * 8, dtype=np.uint8).reshape(6, 8)
    write(tmp_path / "images" / "val" / "a.png", np.stack([pixels] * 3, axis=-1))
    values = np.arange(6 * 8).reshape(6, 8) % 3
    write(tmp_path / "labels" / "val" / "a.png", values.astype(np.uint8))
    sample = FolderDataset(tmp_path, "val", CLASSES, half_size=True).load(0)
    np.testing.assert_array_equal(sample.label, values[::2, ::2])
    # four pixels in the middle of which a new one lies; cubic is exact on a slope, but at borders
    between = (pixels[::2, ::2].astype(int) + pixels[1::2, 1::2]) / 2
    assert np.abs(sample.image[1, 1:3, 0] - between[1, 1:3]).max() <= 0.5
    assert sample.image.shape == (3, 4, 3)
    write(tmp_path / "labels" / "val" / "a.png", values[::2, ::2].astype(np.uint8))
    again = FolderDataset(tmp_path, "val", CLASSES, half_size=True).load(0)
    np.testing.assert_array_equal(again.label, values[::2, ::2])
    write(tmp_path / "labels" / "val" / "a.png", values[::3].astype(np.uint8))
    with pytest.raises(DataError, match=r"a\.png: the label is 8×2 .* is 4×3; expected equal"):
        FolderDataset(tmp_path, "val", CLASSES, half_size=True).load(0)


def test_subfolders_are_part_of_the_name(root):
    write(root / "images" / "train" / "city" / "a.png", image())
    write(root / "labels" / "train" / "city" / "a.png", label(1))
    dataset = FolderDataset(root, "train", CLASSES)
    assert dataset[3].name == "city/a"


def test_classes_come_from_a_text_file(root):
    (root / "classes.txt").write_text("road\ntree\n\n car \n", encoding="utf-8")
    assert FolderDataset(root, "train").info.classes == CLASSES
    with pytest.raises(
        DataError, match=r"nowhere\.txt: there is no such file; .*one a line.*data\.name"
    ):
        FolderDataset(root, "train", "nowhere.txt")


def test_text_files_may_begin_with_a_byte_order_mark(root):
    (root / "classes.txt").write_text("road\r\ntree\r\ncar\r\n", encoding="utf-8-sig")
    (root / "some.txt").write_text("a\nb\n", encoding="utf-8-sig")
    dataset = FolderDataset(root, "train", only=root / "some.txt")
    assert dataset.info.classes == CLASSES
    assert [pair.name for pair in dataset.listing.pairs] == ["a", "b"]


def test_a_class_name_that_comes_twice_is_refused(root):
    (root / "classes.txt").write_text("road\n\ntree\n road\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"classes\.txt: the class 'road' stands in line 1 and again in line 4"
    ):
        FolderDataset(root, "train")
    with pytest.raises(DataError, match=r"the classes 1 and 2 are both called 'tree'; .*rename"):
        FolderDataset(root, "train", ("road", "tree", "tree"))


def test_id_map_translates_file_values(root):
    write(root / "labels" / "train" / "a.png", label(7, 8, 0))
    write(root / "labels" / "train" / "b.png", label(7).astype(np.uint16) + 1000)
    dataset = FolderDataset(root, "train", CLASSES, id_map={7: 0, 8: 2, 0: 255, 1007: 1})
    np.testing.assert_array_equal(dataset[0].label, label(0, 2, 255))
    np.testing.assert_array_equal(dataset[1].label, label(1))
    with pytest.raises(
        DataError, match=r"c\.1\.png: label values 1, 2, 255 .*0, 7 to 8, 1007: add .*id_map"
    ):
        dataset.load(2)


def test_indexed_png_gives_indices(root):
    indexed = Image.fromarray(label(0, 1, 2))
    indexed.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    indexed.save(root / "labels" / "train" / "a.png")
    np.testing.assert_array_equal(FolderDataset(root, "train", CLASSES)[0].label, label(0, 1, 2))


@pytest.mark.parametrize("id_map", [{70000: 0}, {0: 3}, {0: -1}])
def test_impossible_id_map(root, id_map):
    with pytest.raises(DataError, match="id_map: "):
        FolderDataset(root, "train", CLASSES, id_map=id_map)


def test_missing_root(tmp_path):
    with pytest.raises(DataError, match=r"nothing: there is no such folder; expected the root"):
        FolderDataset(tmp_path / "nothing", "train", CLASSES)


def test_missing_split_names_those_that_exist(root):
    with pytest.raises(
        DataError, match=r"images/test: there is no such folder; .*images has train: check"
    ):
        FolderDataset(root, "test", CLASSES)


def test_empty_folder(root):
    (root / "images" / "val").mkdir()
    (root / "labels" / "val").mkdir()
    with pytest.raises(DataError, match=r"images/val: there is no file to read; expected \.jpg"):
        FolderDataset(root, "val", CLASSES)


def test_image_without_label(root):
    (root / "labels" / "train" / "b.png").unlink()
    with pytest.raises(DataError, match=r"b\.jpg: there is no label for it.*\(1 of 3 files"):
        FolderDataset(root, "train", CLASSES)


def test_label_without_image(root):
    (root / "images" / "train" / "b.jpg").unlink()
    with pytest.raises(DataError, match=r"b\.png: there is no image for it.*images/train/b\.\*"):
        FolderDataset(root, "train", CLASSES)


def test_two_images_with_one_stem(root):
    write(root / "images" / "train" / "b.png", image())
    with pytest.raises(DataError, match=r"b\.png: b\.jpg has the same stem"):
        FolderDataset(root, "train", CLASSES)


def test_too_many_classes_or_colours(root):
    with pytest.raises(DataError, match="256 classes; expected 1 to 255"):
        FolderDataset(root, "train", [str(i) for i in range(256)])
    with pytest.raises(DataError, match="1 colours for 3 classes"):
        FolderDataset(root, "train", CLASSES, palette=((0, 0, 0),))


@pytest.mark.parametrize("kind", ["images", "labels"])
@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty"])
def test_damaged_file_is_named(root, kind, damage):
    path = root / kind / "train" / "a.png"
    (root / "images" / "train" / "a.webp").unlink()
    noise = np.random.default_rng(0).integers(0, 3, (64, 64), dtype=np.uint8)
    write(root / "images" / "train" / "a.png", np.stack([noise] * 3, axis=-1))
    write(root / "labels" / "train" / "a.png", noise)
    whole = path.read_bytes()
    path.write_bytes(
        {"truncated": whole[: len(whole) // 2], "foreign": b"<html>" * 50, "empty": b""}[damage]
    )
    with pytest.raises(DataError, match=rf"{kind}/train/a\.png: cannot be read as an image"):
        FolderDataset(root, "train", CLASSES).load(0)


@pytest.mark.parametrize(("kind", "suffix"), [("images", ".jpg"), ("labels", ".png")])
def test_a_file_beyond_the_limit_of_pillow_is_no_damage(root, monkeypatch, kind, suffix):
    large = {"images": image(9, 9), "labels": label(0, height=9, width=9)}[kind]
    write(root / kind / "train" / f"b{suffix}", large)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # an error above twice as many
    message = rf"{kind}/train/b\{suffix}: .* too large .*81 pixels.* limit of 80 .*scale it down"
    with pytest.raises(DataError, match=message):
        FolderDataset(root, "train", CLASSES).load(1)


def test_sizes_that_differ(root):
    write(root / "labels" / "train" / "b.png", label(0, height=6, width=4))
    with pytest.raises(DataError, match=r"b\.png: the label is 4×6 and its image .* is 6×4"):
        FolderDataset(root, "train", CLASSES).load(1)


def test_values_out_of_range(root):
    write(root / "labels" / "train" / "b.png", label(0, 3, 200, 254))
    message = r"b\.png: label values 3, 200, 254 \(18 pixels\).*expected 0 to 2, 255: name.*id_map"
    with pytest.raises(DataError, match=message):
        FolderDataset(root, "train", CLASSES).load(1)


def test_label_with_colours(root):
    write(root / "labels" / "train" / "b.png", image())
    with pytest.raises(DataError, match=r"b\.png: the label has 3 channels \(RGB\).*one channel"):
        FolderDataset(root, "train", CLASSES).load(1)


def test_open_image_is_upright_rgb(tmp_path):
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to view
    write(tmp_path / "turned.png", pixels, exif=exif)
    turned = open_image(tmp_path / "turned.png")
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))
    assert turned.flags.writeable
    write(tmp_path / "grey.png", pixels[..., 0])
    np.testing.assert_array_equal(open_image(tmp_path / "grey.png"), pixels)


def test_open_image_refuses_what_it_would_distort(tmp_path):
    write(tmp_path / "deep.png", np.zeros((2, 2), dtype=np.uint16))
    with pytest.raises(DataError, match=r"deep\.png: the image has mode .*8 bits a channel"):
        open_image(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"gone\.png: there is no such file"):
        open_image(tmp_path / "gone.png")
