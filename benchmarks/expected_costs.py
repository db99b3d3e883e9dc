# SPDX-License-Identifier: MIT
"""Hours and memory that the published recipes should take: `python benchmarks/expected_costs.py`.

Computed, not measured: a step costs three forward passes, on four GPUs that reach RATE each; memory
is what is kept for the backward pass of a GPU's images, and weights, gradients and momentum, all in
float32. `--write` puts the result into the head of each configuration.
"""

import argparse
import functools
import re
import textwrap
from pathlib import Path

import openseg
from openseg.config import load_config, shipped_configs
from openseg.engine.complexity import TOTAL, Part, measure
from openseg.models import create_model

CONFIGS = Path(openseg.__file__).parent / "configs"
GPUS, RATE = 4, 20e12
CLASSES = {"ade20k": 150, "coco_stuff_10k": 171, "pascal_context": 59, "mapillary": 65}
SENTENCE = re.compile(r"Hours and memory: .*?openseg\.train …\)\.")


@functools.cache
def one_image(name: str, backbone: str, classes: int, size: tuple[int, int], **options) -> Part:
    parts = measure(lambda: create_model(name, backbone, classes, **options), (1, 3, *size))
    return next(part for part in parts if part.name == TOTAL)


def expected(name: str) -> str:
    config = load_config(name, ["data.root=."])
    model, train = config.model, config.train
    part = one_image(
        model.name,
        model.backbone,
        CLASSES.get(name.partition("/")[0], 20),
        config.data.crop_size,
        variant=model.variant,
        output_stride=model.output_stride,
        multi_grid=None if model.multi_grid is None else tuple(model.multi_grid),
    )
    hours = 3 * part.flops * train.batch_size * train.iterations / (GPUS * RATE) / 3600
    memory = part.activations * train.batch_size / GPUS + 3 * 4 * part.parameters
    return f"{max(hours, 1):.0f} h and {memory / 2**30:.0f} GiB a GPU"


def rewritten(text: str, cost: str) -> str:
    """The file with the cost in its head, whose paragraph is filled anew."""
    sentence = (
        f"Hours and memory: not measured; by computation {cost}, on {GPUS} GPUs at "
        f"{RATE / 1e12:.0f} TFLOP/s each (torchrun --nproc-per-node {GPUS} -m openseg.train …)."
    )
    head = re.match(r"(#.*\n)+", text).group().removesuffix("\n")
    paragraphs = head.split("\n#\n")
    for index, paragraph in enumerate(paragraphs):
        line = " ".join(part.removeprefix("# ") for part in paragraph.split("\n"))
        if SENTENCE.search(line):
            line = SENTENCE.sub(sentence, line)
            filled = textwrap.wrap(line, 98, break_long_words=False, break_on_hyphens=False)
            paragraphs[index] = "\n".join(f"# {part}" for part in filled)
    return "\n#\n".join(paragraphs) + text[len(head) :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into the configurations")
    options = parser.parse_args()
    for name in shipped_configs():
        if name.startswith(("scenes/", "camvid/")):
            continue
        cost = expected(name)
        print(f"{name:<55}{cost}", flush=True)
        if options.write:
            path = CONFIGS / f"{name}.yaml"
            path.write_text(rewritten(path.read_text(), cost))


if __name__ == "__main__":
    main()
