# SPDX-License-Identifier: MIT
"""What a network costs: `python -m openseg.complexity --model ocrnet --size 1024 2048`.

Prints parameters, operations and activations of each part; nothing is computed, so it takes
seconds.
"""

import argparse

from openseg.cli import at_least_one, run
from openseg.engine.complexity import measure, table
from openseg.errors import ConfigError
from openseg.models import create_model


def main() -> None:
    options = _parse()
    shape = (options.batch, options.in_channels, *options.size)
    try:
        parts = measure(
            lambda: create_model(
                options.model,
                options.backbone,
                options.num_classes,
                output_stride=options.output_stride,
                in_channels=options.in_channels,
                variant=options.variant,
            ),
            shape,
        )
    except ValueError as error:
        raise ConfigError(f"the network cannot be built: {error}") from error
    print(f"{options.model} on {options.backbone}, images {' × '.join(map(str, shape))}")
    print(table(parts))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m openseg.complexity",
        description="Parameters, operations (2 for a multiplication with its addition, forward) "
        "and activations (kept for the backward pass, float32) of a network, by its parts.",
    )
    parser.add_argument("--model", required=True, metavar="NAME")
    parser.add_argument("--backbone", default="resnet101c", metavar="NAME", help="(resnet101c)")
    parser.add_argument(
        "--size", type=at_least_one, nargs=2, default=(1024, 2048), metavar=("H", "W"),
        help="of the images in pixels (1024 2048)",
    )  # fmt: skip
    parser.add_argument("--num-classes", type=at_least_one, default=19, help="(19)")
    parser.add_argument("--variant", default="openseg", metavar="NAME", help="(openseg)")
    parser.add_argument("--output-stride", type=int, choices=(8, 16), help="default: as published")
    parser.add_argument("--in-channels", type=at_least_one, default=3, help="(3)")
    parser.add_argument("--batch", type=at_least_one, default=1, help="images (1)")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
