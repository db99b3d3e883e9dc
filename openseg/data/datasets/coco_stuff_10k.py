# SPDX-License-Identifier: MIT
"""COCO-Stuff-10K: 80 things and 91 kinds of stuff in 9000 and 1000 images.

The published labels are MATLAB files: `python -m openseg.prepare coco_stuff_10k` makes PNG of them.
"""

from pathlib import Path
from typing import Any

from openseg.data import palettes
from openseg.data.base import DatasetInfo
from openseg.data.datasets.listing import Listing
from openseg.data.datasets.published import PublishedDataset

_CLASSES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant,
stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe,
backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine glass, cup, fork,
knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake,
chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard,
cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush, banner, blanket, branch, bridge, building-other, bush, cabinet, cage,
cardboard, carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain,
desk-stuff, dirt, door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood,
flower, fog, food-other, fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves,
light, mat, metal, mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow,
plant-other, plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug,
salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete,
wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind,
window-other, wood
"""
# Ids of COCO that no object of the set has.
_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
INFO = DatasetInfo(
    "coco_stuff_10k",
    tuple(_CLASSES.strip().replace("\n", " ").split(", ")),
    palettes.voc(171),
    label_ids=tuple(value for value in range(1, 183) if value not in _UNUSED),
)


class COCOStuff10K(PublishedDataset):
    """Caesar, Uijlings, Ferrari, "COCO-Stuff: thing and stuff classes in context", CVPR 2018.

    root is what `openseg.prepare` makes of the published files, whose values the labels keep: 0 is
    unlabelled, 1 to 182 are classes. Splits are train and val.
    """

    def __init__(self, root: str | Path, split: str, **options: Any) -> None:
        super().__init__(root, split, INFO, (0, *_UNUSED), **options)

    def list_original(self, split: str) -> Listing:
        raise self._unprepared(split)
