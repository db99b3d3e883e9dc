# SPDX-License-Identifier: MIT
"""Colours of the classes, as tuples of RGB triples, one a class.

The VOC palette is a rule and serves any number of classes; the others are published tables.
"""

from openseg.data.base import Color


def voc(num_classes: int) -> tuple[Color, ...]:
    """The Pascal VOC palette: the bits of the class index dealt to red, green and blue in turn,
    highest colour bit first, so that neighbouring indices look different."""
    return tuple(
        (_every_third_bit(index), _every_third_bit(index >> 1), _every_third_bit(index >> 2))
        for index in range(num_classes)
    )


def _every_third_bit(index: int) -> int:
    return sum((index >> 3 * place & 1) << 7 - place for place in range(8))


CITYSCAPES: tuple[Color, ...] = (
    (128, 64, 128),  # road
    (244, 35, 232),  # sidewalk
    (70, 70, 70),  # building
    (102, 102, 156),  # wall
    (190, 153, 153),  # fence
    (153, 153, 153),  # pole
    (250, 170, 30),  # traffic light
    (220, 220, 0),  # traffic sign
    (107, 142, 35),  # vegetation
    (152, 251, 152),  # terrain
    (70, 130, 180),  # sky
    (220, 20, 60),  # person
    (255, 0, 0),  # rider
    (0, 0, 142),  # car
    (0, 0, 70),  # truck
    (0, 60, 100),  # bus
    (0, 80, 100),  # train
    (0, 0, 230),  # motorcycle
    (119, 11, 32),  # bicycle
)

CAMVID: tuple[Color, ...] = (
    (128, 128, 128),  # sky
    (128, 0, 0),  # building
    (192, 192, 128),  # pole
    (128, 64, 128),  # road
    (0, 0, 192),  # sidewalk
    (128, 128, 0),  # tree
    (192, 128, 128),  # sign symbol
    (64, 64, 128),  # fence
    (64, 0, 128),  # car
    (64, 64, 0),  # pedestrian
    (0, 128, 192),  # bicyclist
)

SCENES: tuple[Color, ...] = (
    (147, 197, 253),  # sky
    (0, 90, 70),  # pines
    (86, 160, 60),  # oaks
    (150, 205, 150),  # beeches
    (245, 190, 50),  # wheat
    (225, 120, 30),  # barley
    (150, 90, 40),  # rye
    (220, 38, 127),  # meadow
    (130, 130, 140),  # path
    (90, 60, 160),  # hut
)
