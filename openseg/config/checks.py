# SPDX-License-Identifier: MIT
"""The ranges of the options, and the rules between them, that types cannot say."""

import math
import re
from collections.abc import Iterator

from openseg.config.schema import Config, LossConfig
from openseg.errors import ConfigError

Rule = tuple[str, object, bool, str]  # key, value given, whether it holds, what is expected


def check(config: Config) -> None:
    """Raises ConfigError for the first value out of range."""
    for key, given, holds, expected in _rules(config):
        if not holds:
            raise ConfigError(f"{key}: {given!r} given, {expected} expected")


def _rules(config: Config) -> Iterator[Rule]:
    model, train, val = config.model, config.train, config.val
    strides = (8, 16)
    yield "model.output_stride", model.output_stride, model.output_stride in strides, "8 or 16"
    yield _at_least("model.in_channels", model.in_channels, 1)
    yield from _data_rules(config)

    yield _at_least("train.iterations", train.iterations, 1)
    yield _at_least("train.batch_size", train.batch_size, 1)
    yield _at_least("train.micro_batch_size", train.micro_batch_size, 1)
    yield _above_zero("train.lr", train.lr)
    yield _above_zero("train.head_lr_factor", train.head_lr_factor)
    yield "train.momentum", train.momentum, 0 <= train.momentum < 1, "at least 0 and below 1"
    yield _at_least("train.weight_decay", train.weight_decay, 0)
    yield _at_least("train.power", train.power, 0)
    yield _at_least("train.warmup_iterations", train.warmup_iterations, 0)
    yield _above_zero("train.clip_grad_norm", train.clip_grad_norm)
    in_range = train.ema is None or 0 < train.ema < 1
    yield "train.ema", train.ema, in_range, "a decay between 0 and 1, such as 0.999, or null"
    yield "train.seed", train.seed, 0 <= train.seed < 1 << 63, "at least 0 and below 2 ** 63"

    yield from _loss_rules(config)
    yield _at_least("val.every", val.every, 1)
    positive = all(math.isfinite(scale) and scale > 0 for scale in val.scales)
    yield "val.scales", val.scales, bool(val.scales) and positive, "numbers above 0"
    yield _at_least("val.patience", val.patience, 1)
    sizes = (val.fixed_size, val.min_side)
    yield "val.min_side", val.min_side, None in sizes, "null beside val.fixed_size"
    for name, side in (("fixed_size", min(val.fixed_size or (1,))), ("min_side", val.min_side)):
        yield _at_least(f"val.{name}", side, 1)
    yield _at_least("val.multiple", val.multiple, 1)
    yield _at_least("val.slide_from", val.slide_from, 0)
    yield from _window_rules(config)

    for name in ("save_every", "log_every"):
        yield _at_least(f"run.{name}", getattr(config.run, name), 1)
    for name in ("keep", "samples"):
        yield _at_least(f"run.{name}", getattr(config.run, name), 0)
    device = config.device
    known = re.fullmatch(r"auto|cpu|cuda(:\d+)?", device) is not None
    yield "device", device, known, "auto, cpu, cuda or cuda:N"
    both = config.run.resume is not None and config.run.overwrite
    yield "run.overwrite", True, not both, "false beside run.resume (it deletes the earlier run)"


def _data_rules(config: Config) -> Iterator[Rule]:
    data = config.data
    needs_root = data.name != "scenes"
    yield "data.root", data.root, bool(data.root) or not needs_root, f"the folder of {data.name}"
    for name in ("classes", "id_map"):
        value, own = getattr(data, name), data.name == "folder"
        yield f"data.{name}", value, value is None or own, "null unless data.name=folder"
    halved = data.half_size and data.name != "folder"
    yield "data.half_size", True, not halved, "false unless data.name=folder"
    for name in ("train_list", "val_list"):
        value, files = getattr(data, name), data.name != "scenes"
        yield f"data.{name}", value, value is None or files, "null, since scenes are drawn,"
    counted = data.background and data.name != "pascal_context"
    yield "data.background", True, not counted, "false unless data.name=pascal_context"
    known = data.name == "cityscapes" and "segfix" in config.loss.main
    expected = "false unless data.name=cityscapes and loss.main={segfix: 1}"
    yield "data.instances", True, known or not data.instances, expected
    yield "data.scene_size", data.scene_size, min(data.scene_size) >= 32, "at least 32 × 32"
    yield _at_least("data.scene_length", data.scene_length, 1)
    yield _at_least("data.scene_val_length", data.scene_val_length, 1)
    yield "data.crop_size", data.crop_size, min(data.crop_size) >= 1, "(height, width) in pixels"
    for name in ("scale_range", "aspect_range"):
        low, high = getattr(data, name)
        yield f"data.{name}", (low, high), 0 < low <= high, "0 < lowest ≤ highest"
    sides = {name: getattr(data, name) for name in ("fixed_size", "min_side", "long_side")}
    given = {name: side for name, side in sides.items() if side is not None}
    yield "data", given, len(given) <= 1, "one of fixed_size, min_side and long_side at most"
    for name, side in given.items():
        least = min(side) if isinstance(side, tuple) else side
        yield f"data.{name}", side, least >= 1, "pixels, 1 or more"
    plain = data.long_side is None or tuple(data.aspect_range) == (1, 1)
    yield "data.aspect_range", data.aspect_range, plain, "[1, 1] beside data.long_side"
    yield _above_zero("data.scale_step", data.scale_step)
    yield "data.brightness", data.brightness, 0 <= data.brightness <= 255, "0 to 255"
    channels = config.model.in_channels
    for name in ("mean", "std"):
        values = getattr(data, name)
        yield f"data.{name}", values, len(values) == channels, f"{channels} numbers, one a channel"
    yield "data.std", data.std, min(data.std) > 0, "numbers above 0"
    yield _above_zero("data.divisor", data.divisor)
    yield _at_least("data.workers", data.workers, 0)


def _loss_rules(config: Config) -> Iterator[Rule]:
    loss = config.loss
    yield "loss.main", loss.main, bool(loss.main), "a loss and its weight, or several"
    for key in ("main", "aux_weights"):
        for name, weight in getattr(loss, key).items():
            yield _at_least(f"loss.{key}.{name}", weight, 0)
    alone = "segfix" not in loss.main or loss.main == {"segfix": 1.0}
    yield "loss.main", loss.main, alone, "segfix: 1 alone, for it has targets of its own"
    name, weights = loss.class_weights_of, loss.class_weights
    if weights is not None:
        yield "loss.class_weights_of", name, name is None, "null beside loss.class_weights"
        usable = all(math.isfinite(w) and w >= 0 for w in weights) and any(weights)
        yield "loss.class_weights", weights, usable, "numbers of at least 0, one of them above"
    smoothing = loss.label_smoothing
    yield "loss.label_smoothing", smoothing, 0 <= smoothing < 1, "at least 0 and below 1"
    yield _at_least("loss.focal_gamma", loss.focal_gamma, 0)
    yield "loss.rmi_weight", loss.rmi_weight, 0 <= loss.rmi_weight <= 1, "0 to 1"
    yield _at_least("loss.rmi_radius", loss.rmi_radius, 1)
    yield _at_least("loss.rmi_stride", loss.rmi_stride, 1)
    thresh = loss.ohem_thresh
    yield "loss.ohem_thresh", thresh, thresh is None or 0 <= thresh <= 1, "null, or 0 to 1"
    yield _at_least("loss.ohem_min_kept", loss.ohem_min_kept, 0)
    if "rmi" in loss.main:
        least, crop = loss.rmi_stride * (loss.rmi_radius - 1) + 1, config.data.crop_size
        room = f"at least {least} a side, for loss.rmi_radius={loss.rmi_radius},"
        yield "data.crop_size", crop, min(crop) >= least, room
    yield from _used_losses(loss)


def _used_losses(loss: LossConfig) -> Iterator[Rule]:
    """An option of a loss that is not there would change nothing."""
    options = {"rmi": ("rmi_weight", "rmi_radius", "rmi_stride"), "focal": ("focal_gamma",)}
    for name, keys in options.items():
        for key in keys:
            value, default = getattr(loss, key), getattr(LossConfig, key)
            used = name in loss.main or value == default
            yield f"loss.{key}", value, used, f"{default} unless loss.main has {name}"
    mined = "cross_entropy" in loss.main or loss.ohem_aux
    expected = "null unless loss.main has cross_entropy, or loss.ohem_aux is true,"
    yield "loss.ohem_thresh", loss.ohem_thresh, mined or loss.ohem_thresh is None, expected
    if "segfix" in loss.main:
        for key in ("class_weights", "class_weights_of", "label_smoothing", "ohem_thresh"):
            value, default = getattr(loss, key), getattr(LossConfig, key)
            expected = f"{default} beside loss.main={{segfix: 1}}"
            yield f"loss.{key}", value, value == default, expected


def _window_rules(config: Config) -> Iterator[Rule]:
    val = config.val
    sliding = val.mode == "slide"
    for name in ("crop_size", "stride"):
        size = getattr(val, name)
        yield f"val.{name}", size, size is None or sliding, "null unless val.mode=slide"
        yield f"val.{name}", size, size is None or min(size) >= 1, "(height, width) in pixels"
    window = val.crop_size or config.data.crop_size
    if val.stride is not None:
        fits = all(s <= w for s, w in zip(val.stride, window, strict=True))
        yield "val.stride", val.stride, fits, f"at most the window, {window}"


def _at_least(key: str, value: float | None, low: float) -> Rule:
    return _finite(key, value, value is None or value >= low, f"at least {low}")


def _above_zero(key: str, value: float | None) -> Rule:
    return _finite(key, value, value is None or value > 0, "more than 0")


def _finite(key: str, value: float | None, holds: bool, expected: str) -> Rule:
    if value == math.inf:
        holds, expected = False, "a finite number"
    return key, value, holds, expected
