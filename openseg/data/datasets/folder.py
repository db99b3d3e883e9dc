# SPDX-License-Identifier: MIT
"""FolderDataset: images and label maps in two folders, matched by file name.

The folders are looked at once, when the data set is made, so that a missing label is found before
the first iteration; files are opened only when they are loaded, and nothing is kept in memory.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from openseg.data import palettes
from openseg.data.base import (
    IGNORE_INDEX,
    Color,
    DatasetInfo,
    Sample,
    open_image,
    unreadable,
)
from openseg.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LABEL_SUFFIXES = (".png",)
_LABEL_MODES = ("1", "L", "P", "I", "I;16")  # one channel of integers
_MAX_VALUES = 1 << 16  # of a 16-bit label file
_UNKNOWN = -1


class FolderDataset:
    """Pairs `images/<split>/NAME.*` and `labels/<split>/NAME.png` under `root`.

    classes: names in the order of the train ids, or a text file with one name a line; a relative
        path is looked up under `root`.
    palette: one RGB colour a class; the VOC palette by default.
    id_map: {value in the file: train id, or 255 to ignore}. Without it the values of the files are
        the train ids. A value that it does not name is an error, never a silent guess.

    Labels are PNG, indexed or grey, 8 or 16 bits, with class ids for pixels (no colours).
    Raises DataError, which names the file or folder, when the folders or a file do not fit.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: Sequence[str] | str | Path = "classes.txt",
        *,
        palette: Sequence[Color] | None = None,
        id_map: Mapping[int, int] | None = None,
        name: str | None = None,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: there is no such folder; expected the root of the data set, "
                "with images/ and labels/ in it: check the path"
            )
        if isinstance(classes, str | Path):
            classes = read_classes(self.root / classes)
        names = tuple(classes)
        colors = palettes.voc(len(names)) if palette is None else tuple(palette)
        self.info = DatasetInfo(name or self.root.name, names, colors)
        self.split = split
        self._files = _pair(
            _list_files(self.root / "images" / split, IMAGE_SUFFIXES),
            _list_files(self.root / "labels" / split, LABEL_SUFFIXES),
            self.root,
            split,
        )
        self._id_map = id_map
        self._train_ids = _lookup_table(len(names), id_map)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        return self.load(index)

    def load(self, index: int) -> Sample:
        name, image_path, label_path = self._files[index]
        image = open_image(image_path)
        label = self._open_label(label_path)
        if image.shape[:2] != label.shape:
            raise DataError(
                f"{label_path}: the label is {label.shape[1]}×{label.shape[0]} and its image "
                f"{image_path} is {image.shape[1]}×{image.shape[0]}; expected equal sizes: "
                "resize the label with nearest-neighbour sampling, or export it anew"
            )
        return Sample(image, label, name)

    def _open_label(self, path: Path) -> np.ndarray:
        try:
            with Image.open(path) as file:
                if file.mode not in _LABEL_MODES:
                    raise DataError(
                        f"{path}: the label has {len(file.getbands())} channels ({file.mode}); "
                        "expected one channel of class ids: convert the colours to ids first"
                    )
                values = np.array(file)
        except (OSError, SyntaxError, ValueError) as error:
            raise unreadable(path, error) from error
        train_ids = self._train_ids[values.astype(np.uint16)]
        unknown = train_ids == _UNKNOWN
        if unknown.any():
            raise self._out_of_range(path, values[unknown])
        return train_ids.astype(np.uint8)

    def _out_of_range(self, path: Path, values: np.ndarray) -> DataError:
        found = _listing(np.unique(values))
        share = f"{values.size} pixels"
        if self._id_map is not None:
            return DataError(
                f"{path}: label values {found} ({share}) are not in id_map; expected "
                f"{_listing(sorted(self._id_map))}: add them to id_map, with {IGNORE_INDEX} "
                "for those to ignore"
            )
        return DataError(
            f"{path}: label values {found} ({share}) are out of range; expected "
            f"0 to {self.info.num_classes - 1}, or {IGNORE_INDEX} to ignore: name the missing "
            "classes, or give an id_map {value: train id}"
        )


def _lookup_table(num_classes: int, id_map: Mapping[int, int] | None) -> np.ndarray:
    """int16 [65536]: the train id of each value a label file can have, -1 where it has none."""
    if id_map is None:
        id_map = {value: value for value in (*range(num_classes), IGNORE_INDEX)}
    table = np.full(_MAX_VALUES, _UNKNOWN, dtype=np.int16)
    for value, train_id in id_map.items():
        if not 0 <= value < _MAX_VALUES:
            raise DataError(f"id_map: label value {value}; expected 0 to {_MAX_VALUES - 1}")
        if not (0 <= train_id < num_classes or train_id == IGNORE_INDEX):
            raise DataError(
                f"id_map: value {value} maps to {train_id}; expected a train id of 0 to "
                f"{num_classes - 1}, or {IGNORE_INDEX} to ignore"
            )
        table[value] = train_id
    return table


def read_classes(path: Path) -> list[str]:
    """Names of classes from a text file with one a line; raises DataError."""
    try:
        names = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: the class names cannot be read ({error}); "
            "expected a text file with one name a line, or give the names themselves"
        ) from error
    return [name.strip() for name in names if name.strip()]


def _list_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files by stem, subfolders included (their stem is then `folder/name`)."""
    if not folder.is_dir():
        siblings = sorted(p.name for p in folder.parent.glob("*") if p.is_dir())
        raise DataError(
            f"{folder}: there is no such folder; expected one for the split {folder.name!r} "
            f"(here: {', '.join(siblings) or 'none'}): check the root and the name of the split"
        )
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes and not path.name.startswith("."):
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in files:
                raise DataError(f"{path}: {files[stem].name} has the same stem; keep one of them")
            files[stem] = path
    if not files:
        raise DataError(
            f"{folder}: there is no file to read; expected {', '.join(suffixes)} files: "
            "check that the data was unpacked here"
        )
    return files


def _pair(
    images: dict[str, Path], labels: dict[str, Path], root: Path, split: str
) -> list[tuple[str, Path, Path]]:
    for name, here, there in (("label", images, labels), ("image", labels, images)):
        alone = sorted(here.keys() - there.keys())
        if alone:
            raise DataError(
                f"{here[alone[0]]}: there is no {name} for it; expected {root}/{name}s/{split}/"
                f"{alone[0]}.* ({len(alone)} of {len(here)} files lack theirs): add the {name}, "
                "or remove the file"
            )
    return [(name, images[name], labels[name]) for name in sorted(images)]


def _listing(values: Iterable[int], most: int = 8) -> str:
    numbers = [str(int(value)) for value in values]
    return ", ".join(numbers[:most]) + (", …" if len(numbers) > most else "")
