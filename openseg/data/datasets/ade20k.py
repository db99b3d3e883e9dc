# SPDX-License-Identifier: MIT
"""ADE20K as in the scene parsing challenge: 150 classes in 20,210 and 2000 images of any size.

Value 0 of a file is "other", which is ignored; value v is class v - 1.
"""

from pathlib import Path
from typing import Any

from openseg.data import palettes
from openseg.data.base import DatasetInfo
from openseg.data.datasets.listing import Listing, match_folders
from openseg.data.datasets.published import PublishedDataset

_CLASSES = """
wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person,
earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea,
mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion,
base, box, column, signboard, chest of drawers, counter, sand, sink, skyscraper, fireplace,
refrigerator, grandstand, path, stairs, runway, case, pool table, pillow, screen door, stairway,
river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill, bench, countertop, stove,
palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, hovel, bus, towel, light,
truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, dirt track,
apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship,
fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall,
tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal,
bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, clock, flag
"""
INFO = DatasetInfo(
    "ade20k",
    tuple(_CLASSES.strip().replace("\n", " ").split(", ")),
    palettes.ADE20K,
    label_ids=tuple(range(1, 151)),
)
_FOLDERS = {"train": "training", "val": "validation"}


class ADE20K(PublishedDataset):
    """Zhou et al., "Scene parsing through ADE20K dataset", CVPR 2017.

    root is ADEChallengeData2016, with `images/{training,validation}/NAME.jpg` and
    `annotations/{training,validation}/NAME.png`. Splits are train and val.
    """

    def __init__(self, root: str | Path, split: str, **options: Any) -> None:
        super().__init__(root, split, INFO, (0,), **options)

    def list_original(self, split: str) -> Listing:
        if split not in _FOLDERS:
            raise self._unknown_split(split, _FOLDERS)
        images = self.root / "images" / _FOLDERS[split]
        labels = self.root / "annotations" / _FOLDERS[split]
        return match_folders(images, labels)
