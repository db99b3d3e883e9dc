# SPDX-License-Identifier: MIT
"""Pictures of labels: indexed PNG, overlay, confidence, legend, contact sheet.

Everything is a uint8 [H, W, 3] RGB array, drawn with Pillow and NumPy alone. Pixels to ignore (and
any value beyond the palette) are black.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from openseg.data.base import Color
from openseg.errors import OutputError

_INK, _PAPER = (40, 40, 40), (255, 255, 255)
_GAP = 6  # pixels between the pictures of a sheet
_FONT_SIZE = 13
_LINE = _FONT_SIZE + 7  # height of a line of text
# Five colours of viridis (matplotlib), from unsure to sure.
_CONFIDENCE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))


def save_label_png(path: str | Path, labels: np.ndarray, palette: Sequence[Color]) -> None:
    """Write labels uint8 [H, W] as an indexed PNG: its values are the labels, its colours the
    palette's. Raises OutputError where the file cannot be written."""
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(f"labels: {labels.dtype} {labels.shape}; expected uint8 [H, W]")
    image = Image.fromarray(labels)
    image.putpalette(_table(palette).tobytes())
    try:
        image.save(path, format="PNG")
    except OSError as error:
        raise OutputError(
            f"{path}: the label map cannot be written ({error}); "
            "check that the folder exists, may be written to, and has room"
        ) from error


def colorize(labels: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """labels uint8 [H, W] to their colours, uint8 [H, W, 3]."""
    return _table(palette)[labels]


def overlay(
    image: np.ndarray, labels: np.ndarray, palette: Sequence[Color], alpha: float = 0.5
) -> np.ndarray:
    """image uint8 [H, W, 3] under the colours of labels uint8 [H, W]; alpha is the share of the
    colours. Pixels to ignore show the image alone."""
    if image.shape[:2] != labels.shape:
        raise ValueError(f"image is {image.shape[:2]}, labels are {labels.shape}; expected equal")
    share = np.where(labels < len(palette), np.float32(alpha), np.float32(0))[..., None]
    mixed = image * (1 - share) + colorize(labels, palette) * share
    return np.rint(mixed).astype(np.uint8)


def confidence_image(confidence: np.ndarray) -> np.ndarray:
    """confidence [H, W] of 0..1 to uint8 [H, W, 3]: from dark violet (0) to yellow (1)."""
    anchors = np.linspace(0, 1, len(_CONFIDENCE))
    channels = zip(*_CONFIDENCE, strict=True)
    picture = np.stack([np.interp(confidence, anchors, channel) for channel in channels], axis=-1)
    return np.rint(picture).astype(np.uint8)


def legend(classes: Sequence[str], palette: Sequence[Color], width: int = 640) -> np.ndarray:
    """Names of the classes beside their colours, in as many lines as `width` pixels need."""
    font = _font()
    box = _FONT_SIZE
    places, x, y = [], _GAP, _GAP
    for name in classes:
        step = box + 5 + int(font.getlength(name)) + 14
        if x > _GAP and x + step > width:
            x, y = _GAP, y + _LINE
        places.append((x, y))
        x += step
    sheet = Image.new("RGB", (width, y + _LINE + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for name, color, (x, y) in zip(classes, palette, places, strict=True):
        draw.rectangle((x, y, x + box, y + box), fill=tuple(color), outline=_INK)
        draw.text((x + box + 5, y + box // 2), name, fill=_INK, font=font, anchor="lm")
    return np.asarray(sheet).copy()


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str] | None = None,
    footer: np.ndarray | None = None,
) -> np.ndarray:
    """Lay pictures uint8 [H, W, 3] (or [H, W]) out in rows.

    captions: a title for each column. footer: a picture below the rows, such as a `legend`.
    A cell is as large as the largest picture, or as wide as a title; smaller ones are centred in
    theirs.
    """
    if not rows or not rows[0]:
        raise ValueError("rows: empty; expected at least one row of one picture")
    columns = max(len(row) for row in rows)
    if captions is not None and len(captions) != columns:
        raise ValueError(f"captions: {len(captions)} for {columns} columns")
    cell_height = max(picture.shape[0] for row in rows for picture in row)
    cell_width = max(picture.shape[1] for row in rows for picture in row)
    cell_width = max([cell_width, *(int(_font().getlength(text)) + 2 for text in captions or ())])
    top = _LINE + _GAP if captions else _GAP
    bottom = top + len(rows) * (cell_height + _GAP)
    width = _GAP + columns * (cell_width + _GAP)
    if footer is not None:
        width = max(width, footer.shape[1])
    height = bottom + (0 if footer is None else footer.shape[0])

    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, caption in enumerate(captions or ()):
        center = _GAP + column * (cell_width + _GAP) + cell_width // 2
        draw.text((center, top // 2), caption, fill=_INK, font=_font(), anchor="mm")
    for line, row in enumerate(rows):
        for column, picture in enumerate(row):
            x = _GAP + column * (cell_width + _GAP) + (cell_width - picture.shape[1]) // 2
            y = top + line * (cell_height + _GAP) + (cell_height - picture.shape[0]) // 2
            sheet.paste(Image.fromarray(picture), (x, y))
    if footer is not None:
        sheet.paste(Image.fromarray(footer), (0, bottom))
    return np.asarray(sheet).copy()


def _table(palette: Sequence[Color]) -> np.ndarray:
    """uint8 [256, 3]: the colour of each uint8 label, black beyond the palette."""
    if len(palette) > 256:
        raise ValueError(f"palette: {len(palette)} colours; a uint8 label has 256 at most")
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(palette)] = palette
    return table


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(_FONT_SIZE)
