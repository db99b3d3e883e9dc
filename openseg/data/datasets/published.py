# SPDX-License-Identifier: MIT
"""PublishedDataset: what the six published sets share: two layouts, and a table of label values.

The second layout is the one that openseg.pytorch prepares, so that trees of that time still serve.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from openseg.data.base import IGNORE_INDEX, DatasetInfo
from openseg.data.datasets.listing import (
    IMAGE_SUFFIXES,
    Listing,
    list_files,
    list_splits,
    match_folders,
    without_labels,
)
from openseg.data.datasets.paired import PairedDataset
from openseg.errors import DataError


class PublishedDataset(PairedDataset):
    """A set in its original layout, or as `root/<split>/{image,label}/NAME.*`.

    Which of the two it is, the folder `root/<split>/label` decides. In the second one label/ leads:
    images without a label are left out, and a split "test" may have images alone, in any subfolder.

    info: its label_ids say which value of a file is which class.
    ignored: the values that stand for no class. Others are an error; so is 255 where the published
        files have another value for it, for then it comes from files of train ids.
    options: see PairedDataset.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        info: DatasetInfo,
        ignored: Iterable[int],
        **options: Any,
    ) -> None:
        assert info.label_ids is not None
        self.info = info
        self.root = Path(root)
        self.split = split
        if not self.root.is_dir():
            raise DataError(
                f"{self.root}: there is no such folder; expected the root of {info.name}: "
                "check the path"
            )
        id_map = {value: train_id for train_id, value in enumerate(info.label_ids)}
        id_map |= dict.fromkeys(ignored, IGNORE_INDEX)
        listing = list_splits(split, self._list)
        super().__init__(info, listing, id_map, **options)

    def list_original(self, split: str) -> Listing:
        """The files of a split in the layout in which the set is published."""
        raise NotImplementedError

    def _list(self, split: str) -> Listing:
        folder = self.root / split
        images, labels = folder / "image", folder / "label"
        if labels.is_dir():
            return match_folders(images, labels)._replace(labels_lead=True)
        if split == "test" and folder.is_dir():
            return without_labels(list_files(folder, IMAGE_SUFFIXES))
        return self.list_original(split)

    @property
    def _way_out(self) -> str:
        return (
            "put the published files here, not train ids or files of another set; "
            "python -m openseg.check_data lists all values"
        )

    def _unknown_split(self, split: str, known: Iterable[str]) -> DataError:
        return DataError(
            f"{self.root}: there is no split {split!r} of this set; expected one of "
            f"{', '.join(known)}, several joined by +, or a folder {split}/ with image/ and label/"
        )

    def _unlisted(self, split: str, lists: Path) -> DataError:
        """The set names the samples of its splits in text files, and this one has none there."""
        known = sorted(path.stem for path in lists.glob("*.txt"))
        if known:
            return self._unknown_split(split, known)
        return DataError(
            f"{self.root}: there is neither {lists.relative_to(self.root)}/{split}.txt nor "
            f"{split}/label; expected the root of {self.info.name}: check that it was unpacked here"
        )

    def _unprepared(self, split: str, further: str = "") -> DataError:
        """further: words that openseg.prepare wants too."""
        known = sorted(path.parent.name for path in self.root.glob("*/label"))
        if known:
            return self._unknown_split(split, known)
        return DataError(
            f"{self.root}: there is no {split}/label to read; the published labels are converted "
            f"once: python -m openseg.prepare {self.info.name} --root {self.root} "
            f"{further}--output FOLDER"
        )
