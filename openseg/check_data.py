# SPDX-License-Identifier: MIT
"""Check a data set before training: `python -m openseg.check_data --cfg NAME | --root DIR`.

Every image and label is opened. The exit status is 1 where something is wrong with the data, and 2
where it cannot even be listed.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, get_args

import yaml

from openseg.build import build_dataset, build_train_transform
from openseg.cli import at_least_one, run
from openseg.config import Config, load_config
from openseg.config.loading import find_config, restore_config
from openseg.data import PairedDataset
from openseg.data.check import SplitCheck, check_split, problems
from openseg.data.check_report import to_dict, to_text
from openseg.data.class_weights import Method, class_weights
from openseg.engine.files import make_folder, replacing
from openseg.engine.progress import show_progress
from openseg.engine.samples import draw_augmented
from openseg.errors import ConfigError

_OVERRIDES = """
overrides are the options of a configuration, such as
  data.name=cityscapes  data.train_split=train+val  data.workers=8
  data.classes=[background,road]  'data.id_map={0: 0, 255: 1}'
"""


def main() -> int:
    options = _parse()
    config = _config(options)
    if options.output is not None:
        make_folder(options.output)
    training = _check(config, config.data.train_split, config.data.train_list)
    checks = [training, _check(config, config.data.val_split, config.data.val_list)]
    found = [problems(check, check is training) for check in checks]
    report: dict[str, Any] = {
        "dataset": training.dataset.info.name,
        "splits": [to_dict(check, check is training) for check in checks],
    }
    weights = None
    if options.class_weights is not None:
        weights = class_weights(training.pixels, training.pixels_around, options.class_weights)
        report["class_weights"] = {"method": options.class_weights, "weights": weights}
    if options.json:
        print(json.dumps(report, indent=1, ensure_ascii=False))
    else:
        print(f"{training.dataset.info.name}, {training.dataset.info.num_classes} classes")
        print("\n".join(to_text(check, check is training) for check in checks))
        if weights is not None:
            print(f"  try: 'loss.class_weights={weights}' ({options.class_weights})")
    if options.output is not None:
        _write(options, config, training, report, weights)
    return int(any(found))


def _check(config: Config, split: str, only: str | None) -> SplitCheck:
    dataset = build_dataset(config, split, only=only, strict=False)
    if not isinstance(dataset, PairedDataset):
        raise ConfigError(f"data.name: {config.data.name} is drawn, a set of files expected")
    with show_progress(f"checking {split}") as progress:
        return check_split(dataset, split, config.data.workers, progress)


def _write(
    options: argparse.Namespace,
    config: Config,
    training: SplitCheck,
    report: dict[str, Any],
    weights: list[float] | None,
) -> None:
    """The report, a picture of augmented samples, and the weights as a configuration."""
    folder: Path = options.output
    texts = {"check.json": json.dumps(report, indent=1, ensure_ascii=False) + "\n"}
    if weights is not None:
        base = {} if options.cfg is None else {"base": _base(options.cfg)}
        texts["class_weights.yaml"] = yaml.safe_dump(
            {**base, "loss": {"class_weights": weights}}, sort_keys=False
        )
    for name, text in texts.items():
        with replacing(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    if problems(training, training=True):
        print("no samples.png before the problems are solved", file=sys.stderr)
    else:
        transform = build_train_transform(config, training.dataset.info)
        picture = folder / "samples.png"
        draw_augmented(training.dataset, transform, config.train.seed, options.samples, picture)
    print("\n".join(str(path) for path in sorted(folder.iterdir())), file=sys.stderr)


def _base(name: str) -> str:
    """A shipped name as it is; a file by its whole path, since the new one lies elsewhere."""
    return str(find_config(name).resolve()) if Path(name).exists() else name


def _config(options: argparse.Namespace) -> Config:
    root = [] if options.root is None else [f"data.root={options.root}"]
    if options.cfg is not None:
        return load_config(options.cfg, [*root, *options.overrides])
    if not root:
        raise ConfigError("--cfg NAME or --root DIR: one of them is needed")
    return restore_config({}, ["data.name=folder", *root, *options.overrides])


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m openseg.check_data",
        description="Look at every file of the training and the validation split.",
        epilog=_OVERRIDES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cfg", metavar="NAME", help="the data of this configuration")
    parser.add_argument("--root", metavar="DIR", help="its folder; alone: a folder of your own")
    parser.add_argument(
        "--class-weights", choices=get_args(Method), help="weights for the loss, by this method"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write check.json, samples.png and the weights"
    )
    parser.add_argument(
        "--samples", type=at_least_one, default=6, metavar="N", help="in samples.png (6)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args()  # key=value words may stand anywhere


if __name__ == "__main__":
    run(main)
