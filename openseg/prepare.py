# SPDX-License-Identifier: MIT
"""Convert a published data set once: `python -m openseg.prepare DATASET --root DIR --output DIR`.

Started again after an interrupt, it goes on where it was. A split appears under its name when all
of it is there; until then it lies in SPLIT.partial. Source files are only read.
"""

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from openseg.cli import run
from openseg.data.preparation import (
    Conversion,
    convert_coco_stuff_10k,
    convert_pascal_context,
    convert_pascal_voc,
)
from openseg.engine.files import make_folder, replacing
from openseg.engine.progress import show_progress
from openseg.errors import DataError, OutputError

_SOURCES = """
coco_stuff_10k   DIR has images/, annotations/ and imageLists/
pascal_context   DIR is VOC2010, with train.pth and val.pth (PyTorch-Encoding) or trainval/*.mat
pascal_voc       DIR is VOC2012; --sbd names benchmark_RELEASE/dataset, for the split trainaug

The other data sets are read as they are published. MATLAB files need scipy:
pip install "openseg[datasets]"
"""
_CONVERSIONS: dict[str, Callable[..., list[Conversion]]] = {
    "coco_stuff_10k": convert_coco_stuff_10k,
    "pascal_context": convert_pascal_context,
    "pascal_voc": convert_pascal_voc,
}


def main() -> None:
    options = _parse()
    root, output = options.root, options.output
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; expected the published files")
    if output.resolve().is_relative_to(root.resolve()):
        raise OutputError(f"{output}: lies in the source, {root}; name a folder outside of it")
    source = (root,) if options.sbd is None else (root, options.sbd)
    conversions = _CONVERSIONS[options.dataset](*source)
    make_folder(output)
    for split in dict.fromkeys(conversion.split for conversion in conversions):
        mine = [conversion for conversion in conversions if conversion.split == split]
        prepare_split(output / split, mine, options.link)
    print(
        f"next: python -m openseg.check_data --root {output} data.name={options.dataset}"
        + (" data.train_split=trainaug" if options.dataset == "pascal_voc" else "")
    )


def prepare_split(folder: Path, conversions: list[Conversion], link: bool = False) -> None:
    """Write image/ and label/ of a split, which becomes `folder` when it is complete."""
    if folder.is_dir():
        there = {path.stem for path in (folder / "label").glob("*.png")}
        if there != {conversion.name for conversion in conversions}:
            raise OutputError(
                f"{folder}: holds {len(there)} other labels than the {len(conversions)} of the "
                "source; choose another output folder or remove this one"
            )
        print(f"{folder.name}: {len(there)} samples were there")
        return
    partial = folder.with_name(f"{folder.name}.partial")
    images, labels = make_folder(partial / "image"), make_folder(partial / "label")
    with show_progress(f"preparing {folder.name}") as progress:
        for done, conversion in enumerate(conversions, 1):
            _write(conversion, images, labels, link)
            progress(done, len(conversions))
    os.replace(partial, folder)
    print(f"{folder.name}: {len(conversions)} samples in {folder}")


def _write(conversion: Conversion, images: Path, labels: Path, link: bool) -> None:
    """The image, then the label, each whole; a label that is there means that both are."""
    label = labels / f"{conversion.name}.png"
    if label.exists():
        return
    with replacing(images / conversion.image.name) as temporary:
        if link:
            temporary.symlink_to(conversion.image.resolve())
        else:
            shutil.copyfile(conversion.image, temporary)
    values = conversion.label()
    with replacing(label) as temporary:
        Image.fromarray(values).save(temporary)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m openseg.prepare",
        description="Convert the published files of a data set to images and PNG labels.",
        epilog=_SOURCES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", choices=_CONVERSIONS)
    parser.add_argument("--root", required=True, type=Path, metavar="DIR", help="published files")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--sbd", type=Path, metavar="DIR", help="labels of SBD for pascal_voc")
    parser.add_argument("--link", action="store_true", help="link to the images instead of copies")
    options = parser.parse_args()
    if (options.sbd is None) == (options.dataset == "pascal_voc"):
        parser.error("--sbd DIR belongs to pascal_voc, which cannot do without it")
    return options


if __name__ == "__main__":
    run(main)
