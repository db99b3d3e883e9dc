# SPDX-License-Identifier: MIT
"""Evaluate a checkpoint: `python -m openseg.evaluate --checkpoint best.pt val.flip=true`.

The data set and the way of validation are those of the run that wrote the checkpoint, unless
--cfg or overrides say otherwise; normalisation is always the checkpoint's. Starts under torchrun
too: the processes then share the images.
"""

import argparse
import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path

from openseg.build import (
    build_eval_transform,
    build_inference,
    build_val_set,
    load_predictor,
)
from openseg.build.refinement import Refinement, find_offsets
from openseg.cli import height_and_width, run
from openseg.config import Config, load_config
from openseg.config.loading import restore_config
from openseg.data import DatasetInfo, Normalize
from openseg.engine.checkpoints import read_checkpoint
from openseg.engine.distributed import process_group
from openseg.engine.evaluation import check_classes, evaluate
from openseg.engine.evaluation_report import print_report, write_report
from openseg.engine.files import make_folder
from openseg.engine.progress import show_progress
from openseg.engine.submission import Submission
from openseg.errors import ConfigError

_INFERENCE = ("crop_size", "stride", "scales", "flip", "multiple", "combine")  # reported
_OVERRIDES = """
overrides are the options of a configuration, such as
  data.root=DIR  data.val_split=test       another folder or split
  val.scales=[0.5,1,1.5]  val.flip=true    sum over scales and the mirrored image
  val.mode=slide  val.crop_size=[512,512]  sliding windows; val.stride=[256,256] overlaps them
  data.workers=8  train.amp=bf16  device=cuda:1
"""


def main() -> None:
    options = _parse()
    config = _config(options)
    if options.output is not None:
        make_folder(options.output)
    with process_group(config.device) as process:
        model, meta = load_predictor(options.checkpoint, process.device)
        dataset = build_val_set(config)
        check_classes(dataset.info, model.num_classes)
        infer = build_inference(config, dataset.info, model)
        normalize = Normalize.from_dict(meta["normalize"])
        transform = build_eval_transform(config, normalize)
        refine = None
        if options.segfix is not None:
            offsets_of = find_offsets(options.segfix, dataset, infer.device, options.segfix_slide)
            refine = Refinement(offsets_of, normalize)
        save = None
        if options.submission is not None:
            save = Submission(options.submission, dataset.info.label_ids)
        if process.is_main:
            _warn_of_other_names(meta["classes"], dataset.info)
        with show_progress("evaluating") if process.is_main else nullcontext() as progress:
            metrics = evaluate(
                infer, dataset, transform, workers=config.data.workers, progress=progress,
                refine=refine, save=save,
            )  # fmt: skip
        if not process.is_main:
            return
    if save is not None:
        kind = "train ids" if dataset.info.label_ids is None else f"ids of {dataset.info.name}"
        print(f"{len(dataset)} label maps, in {kind}: {options.submission}")
    if not metrics.confusion.any():
        print("no label to compare with: no metrics")
        return
    print_report(metrics)
    if options.output is not None:
        facts = {
            "checkpoint": str(options.checkpoint),
            "dataset": dataset.info.name,
            "split": config.data.val_split,
            "images": len(dataset),
            **{name: getattr(config.val, name) for name in ("mode", "fixed_size", "min_side")},
            **{name: getattr(infer, name) for name in _INFERENCE},
            "segfix": None if options.segfix is None else str(options.segfix),
            "segfix_slide": options.segfix_slide,
        }
        for path in write_report(metrics, options.output, facts):
            print(path)
        if importlib.util.find_spec("matplotlib") is None:
            print('no picture of the confusion matrix: pip install "openseg[plot]"')


def _config(options: argparse.Namespace) -> Config:
    if options.cfg is not None:
        return load_config(options.cfg, options.overrides)
    saved = read_checkpoint(options.checkpoint)["config"]
    if saved is None:
        raise ConfigError(
            f"{options.checkpoint} comes from no run of openseg, so it does not say on which data "
            "to evaluate: name a configuration with --cfg"
        )
    return restore_config(saved, options.overrides, source=str(options.checkpoint))


def _warn_of_other_names(classes: list[str], info: DatasetInfo) -> None:
    pairs = zip(classes, info.classes, strict=True)
    other = [f"{ours} is {theirs}" for ours, theirs in pairs if ours != theirs]
    if other:
        print(f"warning: classes of the network and of {info.name} differ: {', '.join(other)}",
              file=sys.stderr)  # fmt: skip


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m openseg.evaluate",
        description="Mean IoU, accuracy and confusion matrix of a checkpoint on a data set.",
        epilog=_OVERRIDES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", required=True, type=Path, metavar="FILE")
    parser.add_argument("--cfg", metavar="NAME", help="data and validation of this configuration")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write metrics.json and the confusion matrix"
    )
    parser.add_argument(
        "--submission", type=Path, metavar="DIR",
        help="write the predictions as the data set's own server wants them",
    )  # fmt: skip
    parser.add_argument(
        "--segfix", type=Path, metavar="FILE",
        help="mend labels near borders by this network, or by a folder of its offsets, NAME.mat",
    )  # fmt: skip
    parser.add_argument(
        "--segfix-slide", type=height_and_width, metavar="H,W",
        help="overlapping windows for it instead of one pass; published: 512,512",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()  # key=value words may stand anywhere
    if options.segfix_slide is not None and options.segfix is None:
        parser.error("--segfix-slide: belongs to --segfix FILE, which is not given")
    return options


if __name__ == "__main__":
    run(main)
