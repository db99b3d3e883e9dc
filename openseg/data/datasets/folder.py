# SPDX-License-Identifier: MIT
"""FolderDataset: images and label maps in two folders, matched by file name.

Trees that were prepared for openseg.pytorch are read as well.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openseg.data import palettes
from openseg.data.base import Color, DatasetInfo
from openseg.data.datasets.listing import Listing, list_splits, match_folders, read_class_names
from openseg.data.datasets.paired import PairedDataset
from openseg.errors import DataError


class FolderDataset(PairedDataset):
    """Pairs `images/<split>/NAME.*` and `labels/<split>/NAME.png` under `root`.

    Where there is a folder `<split>/label` they are `<split>/{image,label}/NAME.*`, and an image
    without a label is left out.

    classes: names in the order of the train ids, or a text file with one name a line; a relative
        path is looked up under `root`.
    palette: one RGB colour a class; the VOC palette by default.
    id_map: {value in the file: train id, or 255 to ignore}; a value that it does not name is an
        error, never a silent guess. See PairedDataset for it and for the further `options`.
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
        **options: Any,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: there is no such folder; expected the root of the data set, "
                "with images/ and labels/ in it: check the path"
            )
        if isinstance(classes, str | Path):
            if not (self.root / classes).is_file():
                raise DataError(
                    f"{self.root / classes}: there is no such file; expected the names of the "
                    "classes, one a line: write it, or give them as data.classes=[…]; a published "
                    "set has its own, with data.name"
                )
            classes = read_class_names(self.root / classes)
        names = tuple(classes)
        colors = palettes.voc(len(names)) if palette is None else tuple(palette)
        info = DatasetInfo(name or self.root.name, names, colors)
        self.split = split
        super().__init__(info, list_splits(split, self._list), id_map, **options)

    def _list(self, split: str) -> Listing:
        prepared = self.root / split / "label"
        if prepared.is_dir():
            listing = match_folders(self.root / split / "image", prepared)
            return listing._replace(labels_lead=True)
        return match_folders(self.root / "images" / split, self.root / "labels" / split)
