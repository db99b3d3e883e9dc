# SPDX-License-Identifier: MIT
"""Foreign and old checkpoints as .safetensors: `python -m openseg.convert OLD.pth NEW.safetensors`.

With --model the tensors get the names of this package, and the file carries the network, classes,
colours and normalisation, so that `openseg.predict` takes it. No code of the old file is run.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from openseg.cli import run
from openseg.data import DatasetInfo, palettes
from openseg.data.datasets.named_classes import named_classes
from openseg.engine.checkpoints import VERSION
from openseg.engine.files import make_folder, replacing
from openseg.errors import CheckpointError, ConfigError
from openseg.models import create_model, resolve_name
from openseg.weights import (
    CONVENTIONS,
    METADATA_KEY,
    LoadReport,
    Weights,
    count_classes,
    load_read,
    read_weights,
    read_without_objects,
)


def main() -> None:
    options = _parse()
    weights, left_out = _read(options.source)
    tensors, metadata = weights.state_dict, None
    try:
        arguments = _arguments(options, weights)
        if arguments is not None:
            model = create_model(**arguments)
            report = load_read(model, weights, str(options.source), options.names)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the network cannot be built or filled: {error}") from error
    if arguments is not None:
        print(report)
        tensors = model.state_dict()
        meta = _meta(options, weights, report, model.num_classes)
        metadata = {"version": VERSION, "model": model.arguments, "meta": meta}
    _write(options.target, tensors, metadata)
    if left_out:
        print(f"left out, being no tensors: {', '.join(left_out)}")
    print(f"{len(tensors)} tensors: {options.target}")


def _read(path: Path) -> tuple[Weights, list[str]]:
    if path.suffix == ".safetensors":
        return read_weights(path), []
    return read_without_objects(path)


def _arguments(options: argparse.Namespace, weights: Weights) -> dict[str, Any] | None:
    """Of `create_model`; None leaves the tensors under the names they have."""
    if options.model is None:
        unread = ["backbone", "variant"] + ([] if weights.model else ["classes", "normalize"])
        given = [f"--{option}" for option in unread if getattr(options, option) is not None]
        if given:
            raise ConfigError(f"{', '.join(given)} without --model: name the network as well")
        return weights.model
    name = resolve_name(options.model)
    num_classes = count_classes(name, weights)
    if num_classes is None:
        raise CheckpointError(
            f"{options.source}: has no classifier of {options.model} by any names that are known; "
            "check --model, or leave it out to keep the tensors as they are"
        )
    return {
        "name": name,
        "backbone": options.backbone or "resnet101c",
        "variant": options.variant or "openseg",
        "num_classes": num_classes,
    }


def _meta(
    options: argparse.Namespace, weights: Weights, report: LoadReport, num_classes: int
) -> dict[str, Any]:
    """What labels mean and how images are normalised, or an error that asks for it."""
    told = weights.meta | (named_classes(options.classes) if options.classes else {})
    classes, palette = told.get("classes"), told.get("palette") or palettes.voc(num_classes)
    if classes is None:
        raise ConfigError(
            f"{options.source} does not name its {num_classes} classes: give a file with one name "
            "a line, --classes classes.txt, or the name of its data set, such as --classes lip"
        )
    if len(classes) != num_classes:
        raise ConfigError(f"{len(classes)} names of classes given, {num_classes} expected")
    normalize = CONVENTIONS.get(options.normalize, report.normalize)
    if normalize is None:
        raise ConfigError(
            f"{options.source} does not say how its images were normalised: give --normalize, "
            f"one of {', '.join(CONVENTIONS)}"
        )
    info = DatasetInfo(str(options.source), tuple(classes), tuple(map(tuple, palette)))
    # Without the key, which classes are left and right is unknown; an empty list says none.
    pairs = {key: list(map(list, told[key])) for key in ("flip_pairs",) if key in told}
    return pairs | {
        "classes": list(info.classes),
        "palette": [list(map(int, color)) for color in info.palette],
        "normalize": normalize.to_dict(),
        "ignore_index": info.ignore_index,
        "dataset": info.name,
    }


def _write(target: Path, tensors: dict[str, Tensor], metadata: dict[str, Any] | None) -> None:
    make_folder(target.parent)
    own = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
    text = None if metadata is None else {METADATA_KEY: json.dumps(metadata)}
    with replacing(target) as path:
        save_file(own, path, text)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m openseg.convert",
        description="Write the tensors of a checkpoint as .safetensors; run no code of it.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="file of torch.save")
    parser.add_argument("target", type=_safetensors, metavar="TARGET", help="a .safetensors file")
    parser.add_argument("--model", metavar="NAME", help="network, one of openseg.list_models()")
    parser.add_argument("--backbone", metavar="NAME", help="(resnet101c)")
    parser.add_argument("--variant", metavar="NAME", help="(openseg)")
    parser.add_argument("--names", default="auto", help="whose names the tensors have (auto)")
    parser.add_argument("--classes", metavar="FILE", help="one name a line; or a set, such as lip")
    parser.add_argument("--normalize", choices=CONVENTIONS, help="of images; default: as published")
    return parser.parse_args()


def _safetensors(text: str) -> Path:
    if not text.endswith(".safetensors"):
        raise argparse.ArgumentTypeError(f"{text!r}: expected a name that ends with .safetensors")
    return Path(text)


if __name__ == "__main__":
    run(main)
