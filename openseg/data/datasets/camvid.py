# SPDX-License-Identifier: MIT
"""CamVid: 701 frames of driving, 480×360, in the split and the 11 classes of SegNet.

The files count void as class 11; here it is ignored, as in the published figures.
"""

from pathlib import Path
from typing import Any

from openseg.data import palettes
from openseg.data.base import IGNORE_INDEX
from openseg.data.datasets.folder import FolderDataset

_CLASSES = (
    *("sky", "building", "pole", "road", "sidewalk", "tree"),
    *("sign symbol", "fence", "car", "pedestrian", "bicyclist"),
)
_ID_MAP = {**{value: value for value in range(11)}, 11: IGNORE_INDEX}


class CamVid(FolderDataset):
    """Brostow, Fauqueur, Cipolla, "Semantic object classes in video", PRL 30(2), 2009.

    root holds `images/{train,val,test}/NAME.jpg` and `labels/{train,val,test}/NAME.png`.
    """

    def __init__(self, root: str | Path, split: str, **options: Any) -> None:
        options |= {"palette": palettes.CAMVID, "id_map": _ID_MAP, "name": "camvid"}
        super().__init__(root, split, _CLASSES, **options)
