# SPDX-License-Identifier: MIT
"""Tiny trees in the layouts in which the data sets are published: two images a split.

A label file has every value that is a class of the set, and one that stands for no class.
"""

import numpy as np
from PIL import Image

SIZE = (24, 32)
SBD = "benchmark_RELEASE/dataset"
COCO_UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
# set: (values of the classes in the order of the train ids, a value to ignore, one that is no id)
VALUES = {
    "cityscapes": ([7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33], 0, 77),
    "ade20k": (list(range(1, 151)), 0, 151),
    "lip": (list(range(20)), 255, 20),
    "pascal_context": (list(range(1, 60)), 0, 60),
    "pascal_voc": (list(range(21)), 255, 21),
    "coco_stuff_10k": ([v for v in range(1, 183) if v not in COCO_UNUSED], 0, 183),
}


def image(index=0, size=SIZE):
    rng = np.random.default_rng(index)
    return rng.integers(0, 256, (*size, 3), dtype=np.uint8)


def label(name):
    """The values of the file of each label, [24, 32]."""
    values, ignored, _ = VALUES[name]
    return np.resize(np.array([*values, ignored], dtype=np.uint8), SIZE)


def train_ids(name):
    """What `label(name)` means, written independently of the readers."""
    values, _, _ = VALUES[name]
    return np.resize(np.array([*range(len(values)), 255], dtype=np.uint8), SIZE)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_list(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(names) + "\n")


def cityscapes(root):
    label_map = label("cityscapes")
    for split, kind in [("train", "gtFine"), ("val", "gtFine"), ("train_extra", "gtCoarse")]:
        for index in range(2):
            stem = f"{split}/aachen/aachen_00000{index}_000019"
            write(root / "leftImg8bit" / f"{stem}_leftImg8bit.png", image(index))
            write(root / kind / f"{stem}_{kind}_labelIds.png", label_map)
            write(root / kind / f"{stem}_{kind}_color.png", image(index))
            write(root / kind / f"{stem}_{kind}_labelTrainIds.png", label_map // 2)
    write(root / "leftImg8bit" / "test" / "bonn" / "bonn_000000_000019_leftImg8bit.png", image())
    return root


def ade20k(root):
    for split, folder in [("train", "training"), ("val", "validation")]:
        for index in range(2):
            stem = f"{folder}/ADE_{split}_0000000{index + 1}"
            write(root / "images" / f"{stem}.jpg", image(index))
            write(root / "annotations" / f"{stem}.png", label("ade20k"))
    return root


def lip(root, twice=False):
    for split in ("train", "val"):
        for index in range(2):
            pictures = root / "TrainVal_images" / ("TrainVal_images" if twice else "")
            write(pictures / f"{split}_images" / f"{index}_7.jpg", image(index))
            labels = root / "TrainVal_parsing_annotations"
            labels /= "TrainVal_parsing_annotations" if twice else ""
            write(labels / f"{split}_segmentations" / f"{index}_7.png", label("lip"))
    write(root / "Testing_images" / "Testing_images" / "testing_images" / "9_9.jpg", image())
    return root


def pascal_voc(root):
    for index in range(4):
        write(root / "JPEGImages" / f"2007_00000{index}.jpg", image(index))
        kind = "SegmentationClass" if index < 3 else "SegmentationClassAug"
        write(root / kind / f"2007_00000{index}.png", label("pascal_voc"))
    lists = root / "ImageSets" / "Segmentation"
    write_list(lists / "train.txt", "2007_000000", "2007_000001")
    write_list(lists / "trainaug.txt", "2007_000003", "2007_000001", "2007_000000")
    write_list(lists / "val.txt", "2007_000002")
    return root


def pascal_context(root):
    for index in range(3):
        write(root / "JPEGImages" / f"2008_00000{index}.jpg", image(index))
        labels = root / "SegmentationClassContext"
        write(labels / f"2008_00000{index}.png", label("pascal_context"))
    lists = root / "ImageSets" / "SegmentationContext"
    write_list(lists / "train.txt", "2008_000001", "2008_000000")
    write_list(lists / "val.txt", "2008_000002")
    return root


def prepared(name, root):
    """The layout of openseg.pytorch, with an image to which there is no label."""
    for split in ("train", "val"):
        for index in range(2):
            write(root / split / "image" / f"{split}_{index}.jpg", image(index))
            write(root / split / "label" / f"{split}_{index}.png", label(name))
        write(root / split / "image" / "unlabelled.jpg", image())
    return root


def coco_stuff_10k(root):
    """As `openseg.prepare` leaves it."""
    return prepared("coco_stuff_10k", root)


def published_coco_stuff_10k(root):
    for index in range(3):
        write(root / "images" / f"COCO_{index}.jpg", image(index))
        write_matlab(
            root / "annotations" / f"COCO_{index}.mat", S=np.roll(label("coco_stuff_10k"), index)
        )
    write_list(root / "imageLists" / "train.txt", "COCO_0", "COCO_1")
    write_list(root / "imageLists" / "test.txt", "COCO_2")
    return root


def published_pascal_context(root):
    """VOC2010 with the masks of PyTorch-Encoding."""
    import torch

    mask = Image.fromarray(label("pascal_context"))
    for index in range(3):
        write(root / "JPEGImages" / f"2008_00000{index}.jpg", image(index))
    torch.save({2008000000: mask, 2008000001: mask}, root / "train.pth")
    torch.save({2008000002: mask}, root / "val.pth")
    return root


def published_pascal_voc(root):
    """VOC2012, whose `benchmark_RELEASE/dataset` has the labels of SBD."""
    lists, sbd = root / "ImageSets" / "Segmentation", root / SBD
    for index in range(3):
        name = f"2007_00000{index}"
        write(root / "JPEGImages" / f"{name}.jpg", image(index))
        write_matlab(sbd / "cls" / f"{name}.mat", GTcls={"Segmentation": label("pascal_voc")})
        if index != 1:
            write(root / "SegmentationClass" / f"{name}.png", label("pascal_voc"))
    write_list(lists / "train.txt", "2007_000000")
    write_list(lists / "val.txt", "2007_000002")
    write_list(sbd / "train.txt", "2007_000000", "2007_000001")
    write_list(sbd / "val.txt", "2007_000002")
    return root


def write_matlab(path, **contents):
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, contents)


# What openseg.prepare converts, and the further words that it wants.
CONVERTED = {
    "pascal_context": (published_pascal_context, lambda root: ()),
    "pascal_voc": (published_pascal_voc, lambda root: ("--sbd", root / SBD)),
    "coco_stuff_10k": (published_coco_stuff_10k, lambda root: ()),
}
TREES = {
    "cityscapes": cityscapes,
    "ade20k": ade20k,
    "lip": lip,
    "pascal_context": pascal_context,
    "pascal_voc": pascal_voc,
    "coco_stuff_10k": coco_stuff_10k,
}
