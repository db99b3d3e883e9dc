# SPDX-License-Identifier: MIT
"""Write drawn scenes as files: `python -m openseg.export_scenes --output DIR --count 8`.

The folder is an example of the layout that `data.name=folder` reads: classes.txt, and for each
split images/SPLIT/NAME.png with labels/SPLIT/NAME.png.
"""

import argparse
from pathlib import Path

from PIL import Image

from openseg.cli import run
from openseg.data import ContextScenes
from openseg.data.drawing import save_label_png
from openseg.engine.files import make_folder
from openseg.errors import OutputError


def main() -> None:
    options = _parse()
    root = make_folder(options.output)
    scenes = ContextScenes(tuple(options.size), options.count, split=options.split)
    images = make_folder(root / "images" / options.split)
    labels = make_folder(root / "labels" / options.split)
    try:
        (root / "classes.txt").write_text("\n".join(scenes.info.classes) + "\n", encoding="utf-8")
        for index in range(len(scenes)):
            scene = scenes.load(index)
            assert scene.label is not None
            Image.fromarray(scene.image).save(images / f"{scene.name}.png")
            save_label_png(labels / f"{scene.name}.png", scene.label, scenes.info.palette)
    except OSError as error:
        raise OutputError(f"{root}: cannot be written: {error.strerror or error}") from error
    print(f"{len(scenes)} scenes: {images}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m openseg.export_scenes",
        description="Write drawn scenes as a data set of images and labels.",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument("--count", type=_positive, default=8, help="scenes to write (8)")
    parser.add_argument(
        "--size", type=_side, nargs=2, default=(64, 256), metavar=("H", "W"), help="in pixels"
    )
    parser.add_argument("--split", choices=("train", "val", "test"), default="val")
    return parser.parse_args()


def _positive(text: str) -> int:
    return _at_least(1, text)


def _side(text: str) -> int:
    return _at_least(32, text)


def _at_least(smallest: int, text: str) -> int:
    if not text.isdigit() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, {smallest} at least")
    return int(text)


if __name__ == "__main__":
    run(main)
