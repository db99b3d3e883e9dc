# SPDX-License-Identifier: MIT
"""What a few samples of a set tell before the first iteration; `openseg.check_data` opens them all.

Loading a sample already finds files that cannot be read, sizes that differ and ids out of range.
"""

import numpy as np

from openseg.data.base import IGNORE_INDEX, Dataset
from openseg.data.datasets.paired import PairedDataset
from openseg.errors import ConfigError, DataError

_SAMPLES = 16


def look_at_samples(dataset: Dataset, in_channels: int) -> None:
    """Load some samples: ConfigError or DataError where they do not fit a network of `in_channels`,
    or have nothing to learn from."""
    indices = spread(len(dataset), _SAMPLES)
    seen: set[int] = set()
    for index in indices:
        sample = dataset.load(index)
        channels = sample.image.shape[2]
        if channels != in_channels:
            raise ConfigError(
                f"model.in_channels: {in_channels} given, {channels} expected: "
                f"that is what image {sample.name!r} has"
            )
        if sample.label is None:
            raise DataError(f"{sample.name}: has no label; training and validation need one")
        seen.update(np.unique(sample.label).tolist())
    info, name = dataset.info, dataset.info.name
    if seen == {IGNORE_INDEX}:
        raise DataError(
            f"{name}: every pixel of {len(indices)} samples is ignored; expected ids of the "
            f"classes, 0 to {info.num_classes - 1}: python -m openseg.check_data tells "
            "which values the files have"
        )
    unmapped = isinstance(dataset, PairedDataset) and dataset.id_map is None
    if unmapped and info.num_classes == 2 and seen == {0, IGNORE_INDEX}:
        raise DataError(
            f"{name}: the labels of {len(indices)} samples have the values 0 and 255 alone, and "
            "255 is ignored; expected 0 and 1: for masks of 0 and 255 give "
            "'data.id_map={0: 0, 255: 1}', and '{0: 0, 1: 1, 255: 255}' if they are right as they "
            "are"
        )
    beyond = {k for k, value in enumerate(info.label_ids or ()) if value >= info.num_classes}
    if 3 * len(beyond) >= info.num_classes and seen.isdisjoint(beyond):
        raise DataError(
            f"{name}: {len(indices)} samples have no label value above {info.num_classes - 1}, and "
            f"{len(beyond)} of {info.num_classes} classes are such values: these look like train "
            f"ids, and the published label files of {name} are expected; or give data.name=folder"
        )


def spread(length: int, count: int) -> list[int]:
    """At most `count` indices below `length`, evenly spaced from the first to the last."""
    places = np.linspace(0, length - 1, min(count, length))
    return [int(place) for place in places.round()]
