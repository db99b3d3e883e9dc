# SPDX-License-Identifier: MIT
"""From `config.data` to data sets and what is done to their images."""

from pathlib import Path
from typing import Any

from openseg.config import Config
from openseg.data import (
    ADE20K,
    LIP,
    BorderMasks,
    BorderOffsets,
    CamVid,
    Cityscapes,
    COCOStuff10K,
    ContextScenes,
    Dataset,
    DatasetInfo,
    EvalTransform,
    FolderDataset,
    Normalize,
    PascalContext,
    PascalVOC,
    TrainTransform,
)
from openseg.data.first_look import look_at_samples
from openseg.errors import ConfigError

_PUBLISHED = {
    "camvid": CamVid,
    "cityscapes": Cityscapes,
    "ade20k": ADE20K,
    "lip": LIP,
    "pascal_voc": PascalVOC,
    "coco_stuff_10k": COCOStuff10K,
}


def build_dataset(
    config: Config,
    split: str,
    length: int | None = None,
    only: str | None = None,
    strict: bool = True,
) -> Dataset:
    """A split of the data set of `config.data`.

    length: for scenes, which are drawn. only: file of the names to keep. strict: see PairedDataset.
    """
    data = config.data
    if data.name == "scenes":
        try:
            return ContextScenes(data.scene_size, length or data.scene_length, split=split)
        except ValueError as error:
            raise ConfigError(f"data: {error}") from error
    assert data.root is not None  # the checks of the configuration see to it
    options: dict[str, Any] = {"only": only, "strict": strict}
    if data.name == "folder":
        options |= {"classes": data.classes or "classes.txt", "id_map": data.id_map}
        options["half_size"] = data.half_size
        return FolderDataset(data.root, split, **options)
    if data.name == "pascal_context":
        return PascalContext(data.root, split, data.background, **options)
    return _PUBLISHED[data.name](data.root, split, **options)


def build_datasets(config: Config) -> tuple[Dataset, Dataset]:
    """The training and the validation set, each looked at in a few places."""
    data = config.data
    train = build_dataset(config, data.train_split, only=data.train_list)
    val = build_dataset(config, data.val_split, data.scene_val_length, data.val_list)
    for dataset in (train, val):
        look_at_samples(dataset, config.model.in_channels)
    train = _as_learned(config, train, data.train_split, BorderOffsets)
    return train, _as_learned(config, val, data.val_split, BorderMasks)


def build_val_set(config: Config) -> Dataset:
    """What a network of this configuration is evaluated on."""
    data = config.data
    val = build_dataset(config, data.val_split, data.scene_val_length, data.val_list)
    return _as_learned(config, val, data.val_split, BorderMasks)


def _as_learned(
    config: Config, dataset: Dataset, split: str, borders: type[BorderOffsets]
) -> Dataset:
    """The set itself, or its borders for SegFix."""
    if "segfix" not in config.loss.main:
        return dataset
    folder = None if config.data.offsets is None else Path(config.data.offsets)
    if not config.data.instances:
        return borders(dataset, folder and folder / split)
    assert isinstance(dataset, Cityscapes)  # the checks of the configuration see to it
    dataset.require_instances()
    return borders(dataset, folder and folder / "instances" / split, dataset.load_instances)


def build_normalize(config: Config) -> Normalize:
    data = config.data
    return Normalize(tuple(data.mean), tuple(data.std), data.divisor, data.channel_order)


def build_train_transform(
    config: Config, info: DatasetInfo, kind: type[TrainTransform] = TrainTransform
) -> TrainTransform:
    data = config.data
    return kind(
        crop_size=data.crop_size,
        normalize=build_normalize(config),
        order=data.order,
        fixed_size=data.fixed_size,
        min_side=data.min_side,
        scale_range=data.scale_range,
        scale_step=data.scale_step,
        aspect_range=data.aspect_range,
        long_side=data.long_side,
        interpolation=data.interpolation,
        flip=data.flip,
        flip_pairs=info.flip_pairs,
        brightness=data.brightness,
        padding=data.padding,
    )


def build_eval_transform(config: Config, normalize: Normalize | None = None) -> EvalTransform:
    """What validation does with an image before the network; a checkpoint has its own normalize."""
    val = config.val
    return EvalTransform(normalize or build_normalize(config), val.fixed_size, val.min_side)
