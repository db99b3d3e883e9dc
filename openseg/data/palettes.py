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


def _hexadecimal(colors: str) -> tuple[Color, ...]:
    """ "7f0010 00ff00" → ((127, 0, 16), (0, 255, 0))."""
    values = [int(color, 16) for color in colors.split()]
    return tuple((value >> 16, value >> 8 & 255, value & 255) for value in values)


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

# The colours of the scene parsing benchmark (color150); two classes share one.
ADE20K: tuple[Color, ...] = _hexadecimal(
    """
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d
    787846 08ff33 ff0652 8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0
    0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0 ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06
    ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff 8c8c8c fa0a0f 14ff00 1fff00
    ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff 00ff70
    00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99
    ff5c00 ff00ff ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52
    000aff 0070ff 3300ff 00c2ff 007aff 00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00
    08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070 5cff00 00e0ff 70e0ff 46b8a0 a300ff
    9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500 0abed4 d6ff00
    00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8
    005cff b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
    """
)
