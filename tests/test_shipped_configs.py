# SPDX-License-Identifier: MIT
"""Every shipped configuration: what it says of itself, and that everything it names can be built.

Networks are built on the meta device, so that none of them computes.
"""

import dataclasses
import functools
import re
from pathlib import Path

import pytest
import torch

from openseg import build
from openseg.build.losses import build_criterion
from openseg.config import load_config, shipped_configs
from openseg.config.schema import ModelConfig
from openseg.data import ContextScenes, DatasetInfo
from openseg.data.datasets import named_classes, pascal_context

FOLDER = Path(load_config.__code__.co_filename).parents[1] / "configs"
OWN = [name for name in shipped_configs() if name.startswith(("scenes/", "camvid/"))]
PUBLISHED = [name for name in shipped_configs() if name not in OWN]


def own_folder(name, classes):
    return DatasetInfo(name, tuple(map(str, range(classes))), ((0, 0, 0),) * classes)


INFOS = {
    "scenes": ContextScenes((32, 32), 1).info,
    "camvid": own_folder("camvid", 11),
    "mapillary": own_folder("mapillary", 65),
    "celeba": own_folder("celeba", 19),
    **named_classes.PUBLISHED,
}


def load(name):
    return load_config(name, [] if name.startswith("scenes/") else ["data.root=somewhere"])


def info_of(name, config):
    if config.data.background:
        return pascal_context.INFO_WITH_BACKGROUND
    return INFOS[name.partition("/")[0]]


@functools.cache
def network(**options):
    """One for all data sets: their numbers of classes change the last layers alone."""
    config = load_config("scenes/demo")
    config.model = ModelConfig(**options)
    with torch.device("meta"):
        return build.build_model(config, 4)[0]


@pytest.mark.parametrize("name", shipped_configs())
def test_all_that_it_names_can_be_built(name):
    config = load(name)
    assert config.run.folder == f"runs/{name}"
    info = info_of(name, config)
    options = dataclasses.asdict(config.model) | {"weights_source": "auto"}
    options["multi_grid"] = tuple(options["multi_grid"] or ()) or None
    model = network(**options)
    criterion = build_criterion(config, model, info)
    if config.model.name == "segfix":
        assert criterion.ignore_index == info.ignore_index
    else:
        assert criterion.aux_weights == config.loss.aux_weights
    assert len(build.build_optimizer(config, model).param_groups) == 2
    infer = build.build_inference(config, info, model)
    assert infer.flip_pairs == info.flip_pairs
    assert build.build_train_transform(config, info).crop_size == config.data.crop_size
    assert build.build_eval_transform(config).fixed_size == config.val.fixed_size


@pytest.mark.parametrize("name", shipped_configs())
def test_it_opens_with_its_command(name):
    head = (FOLDER / f"{name}.yaml").read_text().partition("\nmodel:")[0]
    assert f"python -m openseg.train --cfg {name}" in head


@pytest.mark.parametrize("name", OWN)
def test_it_says_what_it_costs(name):
    head = (FOLDER / f"{name}.yaml").read_text().partition("\nmodel:")[0]
    assert re.search(r"minutes|hours", head)
    assert " GB" in head


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_says_what_was_published_and_what_it_costs(name):
    head = (FOLDER / f"{name}.yaml").read_text().replace("\n# ", " ")
    assert "Published: " in head
    assert re.search(r"Hours and memory: not measured; by computation \d+ h and \d+ GiB", head)
    assert "data.root=/path/to/" in head
