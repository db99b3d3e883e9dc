# SPDX-License-Identifier: MIT
"""Predict images with a checkpoint: `python -m openseg.predict --checkpoint best.pt photos/`.

Each image gives labels/NAME.png (indexed, with the palette of the classes), overlay/NAME.jpg and
confidence/NAME.png in the output folder.
"""

import argparse
import sys

from openseg.build import load_predictor
from openseg.cli import height_and_width, run
from openseg.engine.prediction import SUFFIXES, Predictor, find_images, predict_files
from openseg.engine.progress import show_progress
from openseg.engine.trainer import AMP_DTYPES
from openseg.errors import ConfigError


def main() -> int:
    options = _parse()
    images = find_images(options.inputs)
    model, meta = load_predictor(options.checkpoint, options.device)
    if options.flip and "flip_pairs" not in meta:
        print(
            f"warning: --flip: {options.checkpoint} does not say which classes are left and right "
            "of each other; where there are any, they are mixed: convert it anew, with --classes "
            "and the name of its data set",
            file=sys.stderr,
        )
    try:
        predictor = Predictor(
            model,
            meta,
            mode="slide" if options.slide else "whole",
            crop_size=options.slide,
            stride=options.stride,
            scales=options.scales,
            flip=options.flip,
            amp_dtype=AMP_DTYPES[options.amp],
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error
    with show_progress("predicting") as progress:
        unreadable = predict_files(
            predictor, images, options.output, options.save, options.overwrite, progress
        )
    print(f"{len(images) - len(unreadable)} of {len(images)} images predicted: {options.output}")
    for image_error in unreadable:
        print(f"error: {image_error}", file=sys.stderr)
    return 1 if unreadable else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m openseg.predict",
        description="Predict images with a checkpoint, which carries all that is needed for it.",
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="image, folder or glob pattern")
    parser.add_argument("--checkpoint", required=True, metavar="FILE")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--save", type=_kinds, default=tuple(SUFFIXES), metavar="KINDS",
        help="what to write, of labels,overlay,confidence (all of them by default)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument(
        "--slide",
        type=height_and_width,
        metavar="H,W",
        help="sliding windows of this size instead of one pass",
    )
    parser.add_argument(
        "--stride", type=height_and_width, metavar="H,W", help="their step; default: no overlap"
    )
    parser.add_argument(
        "--scales", type=_floats, default=(1.0,), metavar="S,S", help="such as 0.5,1,1.5"
    )
    parser.add_argument("--flip", action="store_true", help="add the logits of the mirrored image")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--amp", choices=AMP_DTYPES, default="none", help="precision")
    return parser.parse_intermixed_args()  # images may stand anywhere


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(dict.fromkeys(text.split(",")))
    unknown = set(kinds) - set(SUFFIXES)
    if unknown:
        raise argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(SUFFIXES)}")
    return kinds


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected numbers such as 0.5,1") from None


if __name__ == "__main__":
    run(main)
