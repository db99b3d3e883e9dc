# SPDX-License-Identifier: MIT
"""Mend label maps near borders: `python -m openseg.refine --checkpoint segfix.pt --labels maps …`.

The maps may come from any network, in any values: labels are copied, never computed. The label of
an image is LABELS/NAME.png; what is written has its mode, palette and size.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openseg.build.refinement import Refinement
from openseg.cli import at_least_one, height_and_width, run
from openseg.data import open_image
from openseg.data.base import unreadable
from openseg.engine.files import make_folder, replacing
from openseg.engine.prediction import find_images, refuse_existing
from openseg.engine.progress import show_progress
from openseg.errors import DataError

_MODES = ("L", "P", "I;16")


def main() -> None:
    options = _parse()
    images = find_images(options.inputs)
    names = [f"{image.stem}.png" for image in images]
    missing = [name for name in names if not (options.labels / name).is_file()]
    if missing:
        raise DataError(
            f"{options.labels / missing[0]}: there is no such file; expected a label map for each "
            f"image ({len(missing)} of {len(images)} lack theirs)"
        )
    if not options.overwrite:
        refuse_existing([options.output / name for name in names])
    refine = Refinement(options.checkpoint, options.device, options.slide, options.scale)
    make_folder(options.output)
    changed = pixels = 0
    with show_progress("refining") as progress:
        for done, (image, name) in enumerate(zip(images, names, strict=True), start=1):
            before, after = _refine(refine, image, options.labels / name, options.output / name)
            changed += int((before != after).sum())
            pixels += before.size
            progress(done, len(images))
    print(f"{len(images)} label maps, {100 * changed / pixels:.2f} % of their pixels changed: "
          f"{options.output}")  # fmt: skip


def _refine(
    refine: Refinement, image: Path, source: Path, target: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Write one label map; the values before and after."""
    pixels = open_image(image)
    try:
        with Image.open(source) as file:
            mode, palette, before = file.mode, file.getpalette(), np.array(file)
    except (OSError, SyntaxError, ValueError) as error:
        raise unreadable(source, error) from error
    if mode not in _MODES or before.shape != pixels.shape[:2]:
        raise DataError(
            f"{source}: {before.shape[1]}×{before.shape[0]} in mode {mode} given, "
            f"{pixels.shape[1]}×{pixels.shape[0]} as {image} and one channel of ids "
            f"({', '.join(_MODES)}) expected"
        )
    labels = torch.from_numpy(before.astype(np.int32))
    after = refine(pixels, labels).numpy().astype(before.dtype)
    result = Image.fromarray(after)
    if palette is not None:
        result.putpalette(palette)
    with replacing(target) as temporary:
        result.save(temporary)
    return before, after


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m openseg.refine",
        description="Take labels near borders from further inside, where SegFix says so.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IMAGE", help="image, folder or glob pattern")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="of a segfix network")
    parser.add_argument("--labels", required=True, type=Path, metavar="DIR", help="NAME.png each")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--slide", type=height_and_width, metavar="H,W",
        help="overlapping windows of this size instead of one pass; published: 512,512",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=at_least_one, default=2, metavar="N",
        help="pixels from a border to where its label is taken from; published: %(default)s, and 1 "
        "for masks of instances",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
