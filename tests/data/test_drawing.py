# SPDX-License-Identifier: MIT
"""Palettes and pictures of labels."""

import numpy as np
import pytest
from PIL import Image

from openseg.data import drawing, palettes
from openseg.errors import OutputError

PALETTE = ((10, 20, 30), (200, 0, 0))
LABELS = np.array([[0, 1, 255], [1, 0, 7]], dtype=np.uint8)


def test_voc_palette_is_the_published_one():
    colors = palettes.voc(256)
    assert colors[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert colors[20] == (0, 64, 128)  # tv/monitor
    assert colors[255] == (224, 224, 192)  # the void of VOC's own label files
    assert len(set(colors)) == 256


@pytest.mark.parametrize(
    ("palette", "num_classes"),
    [(palettes.CITYSCAPES, 19), (palettes.CAMVID, 11), (palettes.SCENES, 10)],
)
def test_tables_have_one_colour_a_class(palette, num_classes):
    assert len(set(palette)) == num_classes


def test_label_png_keeps_values_and_shows_colours(tmp_path):
    path = tmp_path / "labels.png"
    drawing.save_label_png(path, LABELS, PALETTE)
    with Image.open(path) as file:
        np.testing.assert_array_equal(np.array(file), LABELS)
        np.testing.assert_array_equal(
            np.array(file.convert("RGB")), drawing.colorize(LABELS, PALETTE)
        )


def test_label_png_that_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match=r"gone/labels\.png: .* check that the folder exists"):
        drawing.save_label_png(tmp_path / "gone" / "labels.png", LABELS, PALETTE)
    with pytest.raises(ValueError, match="expected uint8"):
        drawing.save_label_png(tmp_path / "labels.png", LABELS.astype(np.int64), PALETTE)


def test_overlay_mixes_and_leaves_ignored_pixels():
    image = np.full((2, 3, 3), 100, dtype=np.uint8)
    mixed = drawing.overlay(image, LABELS, PALETTE, alpha=0.25)
    assert mixed.dtype == np.uint8
    np.testing.assert_array_equal(mixed[0, 0], [78, 80, 82])
    np.testing.assert_array_equal(mixed[0, 1], [125, 75, 75])
    np.testing.assert_array_equal(mixed[:, 2], image[:, 2])
    with pytest.raises(ValueError, match="expected equal"):
        drawing.overlay(image[:1], LABELS, PALETTE)


def test_confidence_runs_from_violet_to_yellow():
    picture = drawing.confidence_image(np.array([[0.0, 0.125, 1.0]]))
    np.testing.assert_array_equal(picture[0], [[68, 1, 84], [64, 42, 112], [253, 231, 37]])


def test_legend_wraps_and_shows_each_colour():
    names = ("a long name of a class", "another long name")
    wide, narrow = (drawing.legend(names, PALETTE, width) for width in (640, 200))
    assert wide.shape[1] == 640
    assert narrow.shape[0] > wide.shape[0]
    for picture in (wide, narrow):
        for color in PALETTE:
            assert (picture == color).all(axis=-1).sum() > 50


def test_contact_sheet_places_pictures():
    red = np.zeros((20, 30, 3), dtype=np.uint8)
    red[..., 0] = 255
    grey = np.full((10, 10), 7, dtype=np.uint8)
    footer = np.full((15, 300, 3), 9, dtype=np.uint8)
    sheet = drawing.contact_sheet([[red, grey], [grey]], ["left", "right"], footer)
    assert sheet.shape[1] == 300
    assert (sheet == [255, 0, 0]).all(axis=-1).sum() == 20 * 30
    assert (sheet == 7).all(axis=-1).sum() == 2 * 10 * 10
    np.testing.assert_array_equal(sheet[-15:], footer)
    wide = drawing.contact_sheet([[grey, grey]], ["wider than its picture"] * 2)
    gap = drawing._GAP  # the titles do not run into one another: both columns are the same
    step = (wide.shape[1] - gap) // 2
    np.testing.assert_array_equal(wide[:, gap : gap + step], wide[:, gap + step :])
    assert (wide[: drawing._LINE] != 255).any()
    with pytest.raises(ValueError, match="captions: 1 for 2 columns"):
        drawing.contact_sheet([[red, grey]], ["left"])
    with pytest.raises(ValueError, match="rows: empty"):
        drawing.contact_sheet([])
