# SPDX-License-Identifier: MIT
"""What the classes of a network mean, by the name of a published set or by a file of names."""

from pathlib import Path
from typing import Any

from openseg.data.base import DatasetInfo
from openseg.data.datasets import (
    ade20k,
    cityscapes,
    coco_stuff_10k,
    lip,
    pascal_context,
    pascal_voc,
)
from openseg.data.datasets.listing import read_class_names
from openseg.errors import DataError

PUBLISHED: dict[str, DatasetInfo] = {
    module.INFO.name: module.INFO
    for module in (ade20k, cityscapes, coco_stuff_10k, lip, pascal_context, pascal_voc)
}


def named_classes(name_or_file: str) -> dict[str, Any]:
    """ "classes", and of a published set also its "palette" and "flip_pairs".

    A file that is called as a set is given with its folder: ./lip. Raises DataError for a file
    that cannot be read or has a name twice.
    """
    if name_or_file in PUBLISHED:
        info = PUBLISHED[name_or_file]
        return {"classes": info.classes, "palette": info.palette, "flip_pairs": info.flip_pairs}
    if not Path(name_or_file).is_file():
        raise DataError(
            f"{name_or_file}: there is no such file, nor a data set of this name; expected a text "
            f"file with the name of a class a line, or one of {', '.join(PUBLISHED)}"
        )
    return {"classes": read_class_names(name_or_file)}
