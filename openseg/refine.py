# SPDX-License-Identifier: MIT
"""Mend label maps or masks of instances near borders: `python -m openseg.refine --checkpoint
segfix.pt --labels MAPS --output MENDED IMAGES`, or by `--offsets DIR`, files that say where from.

The maps may come from any network, in any values: labels are copied, never computed.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openseg.build.refinement import KeptOffsets, PredictedOffsets
from openseg.cli import at_least_one, height_and_width, run
from openseg.data import open_image
from openseg.data.datasets.listing import require_files
from openseg.data.offset_files import write_offsets
from openseg.engine.files import make_folder, replacing
from openseg.engine.mending import INSTANCES, Mending, masks_of, mend_instances, mend_label_map
from openseg.engine.prediction import find_images, refuse_existing
from openseg.engine.progress import show_progress
from openseg.errors import DataError
from openseg.models import refine_labels

_FORMS = """
--labels DIR       NAME.png, a label map each, whose mode, palette and values stay
--instances DIR    NAME_pred.txt and the masks that it names, as the Cityscapes tools have them
--write-offsets    NAME.mat in --output, for --offsets and for the published scripts of SegFix

NAME is that of the image. With --offsets DIR, such as the published offset_semantic, no image is
needed: what lies in the other folder is mended. NAME.mat needs scipy:
pip install "openseg[datasets]"
"""


def main() -> None:
    options = _parse()
    folder: Path | None = options.labels or options.instances
    ending = ".png" if options.labels else INSTANCES if options.instances else ".mat"
    images: dict[str, Path | None]
    if options.offsets is None:
        images = {image.stem: image for image in find_images(options.inputs)}
    else:
        images = dict.fromkeys(_names(options.labels or options.instances, ending))
    if folder is not None:
        require_files(
            [folder / f"{name}{ending}" for name in images], "expected one for each image"
        )
    if options.instances:
        for name in images:
            masks_of(options.instances / f"{name}{INSTANCES}")
    if not options.overwrite:
        refuse_existing([options.output / f"{name}{ending}" for name in images])
    offsets_of: PredictedOffsets | KeptOffsets
    if options.offsets is None:
        offsets_of = PredictedOffsets(options.checkpoint, options.device, options.slide)
    else:
        offsets_of = KeptOffsets(options.offsets)
        offsets_of.require(images)
    make_folder(options.output)
    counts = np.zeros(2, dtype=np.int64)
    with show_progress("refining") as progress:
        for done, (name, image) in enumerate(images.items(), start=1):
            offsets = offsets_of(name, None if image is None else open_image(image))
            origin = image or options.offsets / f"{name}.mat"
            counts += _write(options, name, offsets.cpu(), origin)
            progress(done, len(images))
    share = (
        "" if not counts[1] else f", {100 * counts[0] / counts[1]:.2f} % of their pixels changed"
    )
    kind = {".png": "label maps", INSTANCES: "lists of instances", ".mat": "files of offsets"}
    print(f"{len(images)} {kind[ending]}{share}: {options.output}")


def _write(options: argparse.Namespace, name: str, offsets: Tensor, origin: Path) -> np.ndarray:
    """What is asked for of one image. Gives the pixels that changed, and all of them."""
    scale = options.scale or (2 if options.labels else 1)

    def mend(labels: np.ndarray) -> np.ndarray:
        return refine_labels(torch.from_numpy(labels)[None], offsets[None], scale)[0].numpy()

    mending = Mending(mend, (offsets.shape[1], offsets.shape[2]), origin)
    if options.labels:
        file = f"{name}.png"
        return mend_label_map(options.labels / file, options.output / file, mending)
    if options.instances:
        return mend_instances(options.instances / f"{name}{INSTANCES}", options.output, mending)
    with replacing(options.output / f"{name}.mat") as temporary:
        write_offsets(temporary, offsets.movedim(0, 2).numpy())
    return np.zeros(2, dtype=np.int64)


def _names(folder: Path, ending: str) -> list[str]:
    names = [path.name.removesuffix(ending) for path in sorted(folder.glob(f"*{ending}"))]
    if not names:
        raise DataError(f"{folder}: there is no file to read; expected NAME{ending} files")
    return names


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m openseg.refine",
        description="Take labels near borders from further inside, where SegFix says so.",
        epilog=_FORMS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("inputs", nargs="*", metavar="IMAGE", help="image, folder or glob pattern")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", metavar="FILE", help="of a segfix network")
    source.add_argument("--offsets", type=Path, metavar="DIR", help="its offsets, NAME.mat each")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--labels", type=Path, metavar="DIR", help="label maps to mend")
    form.add_argument("--instances", type=Path, metavar="DIR", help="instances to mend")
    form.add_argument("--write-offsets", action="store_true", help="write offsets, mend nothing")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR")
    parser.add_argument(
        "--slide", type=height_and_width, metavar="H,W",
        help="overlapping windows of this size instead of one pass; published: 512,512",
    )  # fmt: skip
    parser.add_argument(
        "--scale", type=at_least_one, metavar="N",
        help="pixels from a border to where its label is taken from; as published 2 for label maps "
        "and 1 for instances",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_intermixed_args()  # images may stand anywhere
    if (options.offsets is None) != bool(options.inputs):
        parser.error("IMAGE: belongs to --checkpoint FILE, which cannot do without it")
    if options.offsets is not None and (options.write_offsets or options.slide is not None):
        parser.error("--write-offsets, --slide: belong to --checkpoint FILE, which is not given")
    return options


if __name__ == "__main__":
    run(main)
