# SPDX-License-Identifier: MIT
"""From a configuration to objects: the only module that reads the tree and knows all names.

A mistake of the user is found here, before the first iteration: what does not fit raises an error
that names the key.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from openseg.build.data import (
    build_dataset,
    build_datasets,
    build_eval_transform,
    build_normalize,
    build_train_transform,
    build_val_set,
)
from openseg.build.losses import build_criterion
from openseg.config import Config
from openseg.config.loading import to_plain
from openseg.data import (
    BorderOffsets,
    BorderTransform,
    Dataset,
    DatasetInfo,
    ResumableSampler,
    TrainSet,
    TrainTransform,
)
from openseg.engine.batches import endless_batches
from openseg.engine.checkpoints import read_checkpoint
from openseg.engine.determinism import set_deterministic, set_seed
from openseg.engine.distributed import Process, choose_device, process_group
from openseg.engine.inference import Inference
from openseg.engine.reporting import Reporter, SilentEvents
from openseg.engine.run_folder import RunFolder
from openseg.engine.schedules import poly_schedule
from openseg.engine.trainer import AMP_DTYPES, Trainer
from openseg.engine.training import Plan, Progress
from openseg.engine.validation import Validation
from openseg.errors import CheckpointError, ConfigError
from openseg.models import SegmentationModel, create_model
from openseg.weights import LoadReport, load_weights

__all__ = [
    "build_batches",
    "build_checkpoint",
    "build_criterion",
    "build_dataset",
    "build_datasets",
    "build_eval_transform",
    "build_inference",
    "build_model",
    "build_normalize",
    "build_optimizer",
    "build_plan",
    "build_reporter",
    "build_run_folder",
    "build_train_transform",
    "build_trainer",
    "build_val_set",
    "build_validation",
    "checkpoint_to_resume",
    "load_predictor",
    "progress_to_resume",
    "start_process",
]


def build_batches(config: Config, dataset: Dataset, process: Process, start: int = 0) -> Any:
    """Endless batches of this process, after the first `start` samples of the stream."""
    data, train = config.data, config.train
    kind = BorderTransform if isinstance(dataset, BorderOffsets) else TrainTransform
    transform = build_train_transform(config, dataset.info, kind)
    sampler = ResumableSampler(
        len(dataset),
        train.batch_size // process.world_size,
        train.seed,
        start,
        process.rank,
        process.world_size,
    )
    on_gpu = process.device.type == "cuda"
    return endless_batches(TrainSet(dataset, transform, train.seed), sampler, data.workers, on_gpu)


def build_model(
    config: Config, num_classes: int, resumes: bool = False
) -> tuple[SegmentationModel, LoadReport | None]:
    """The network with the weights that `model.weights` names, and the report of loading them.

    resumes: a checkpoint will replace all of them; the file may be gone, and is not read.
    """
    model = config.model
    report = None
    try:
        network = create_model(
            model.name,
            model.backbone,
            num_classes,
            output_stride=model.output_stride,
            in_channels=model.in_channels,
            multi_grid=model.multi_grid,
            variant=model.variant,
            align_corners=model.align_corners,
        )
        if model.weights is not None and not resumes:
            report = load_weights(network, model.weights, model.weights_source)
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error
    if network.needs_labels:
        raise ConfigError(
            f"model.name: {model.name} given, a network that sees images alone expected; this one "
            "is told the labels, as model(images, labels)"
        )
    normalize = build_normalize(config)
    if report is not None and report.normalize not in (None, normalize):
        report.warnings.append(f"data.mean, std, divisor and channel_order say {normalize}")
    return network, report


def build_optimizer(config: Config, model: SegmentationModel) -> Optimizer:
    """The optimizer over two groups, "backbone" and "head", each with its `base_lr`."""
    train = config.train
    backbone = list(model.backbone.parameters())
    known = {id(parameter) for parameter in backbone}
    head = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [
        {"name": "backbone", "params": backbone, "base_lr": train.lr},
        {"name": "head", "params": head, "base_lr": train.lr * train.head_lr_factor},
    ]
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, train.lr, weight_decay=train.weight_decay)
    return torch.optim.SGD(groups, train.lr, train.momentum, weight_decay=train.weight_decay)


def build_trainer(
    config: Config, model: SegmentationModel, info: DatasetInfo, process: Process
) -> Trainer:
    """The network with its loss, optimizer and schedule."""
    train = config.train
    _check_batch(config, process)
    if train.amp == "fp16" and process.device.type != "cuda":
        raise ConfigError("train.amp: fp16 given, bf16 or none expected without a CUDA device")
    criterion = build_criterion(config, model, info)
    schedule = poly_schedule(train.iterations, train.power, train.warmup_iterations, train.warmup)
    optimizer = build_optimizer(config, model)
    set_seed(train.seed + process.rank)  # each process drops out other channels
    return Trainer(
        model,
        criterion,
        optimizer,
        schedule,
        process,
        micro_batch_size=train.micro_batch_size,
        amp=train.amp,
        clip_grad_norm=train.clip_grad_norm,
        ema_decay=train.ema,
        freeze_norm=train.freeze_norm,
        channels_last=train.channels_last,
        compile=train.compile,
    )


def _check_batch(config: Config, process: Process) -> None:
    total, micro, processes = (
        config.train.batch_size,
        config.train.micro_batch_size,
        process.world_size,
    )
    if total % processes:
        raise ConfigError(
            f"train.batch_size: {total} given, a multiple of the {processes} processes expected: "
            "it is the total of all of them"
        )
    share = total // processes
    if micro is not None and share % micro:
        raise ConfigError(
            f"train.micro_batch_size: {micro} given, a divisor of {share} expected: that is the "
            f"share of each of {processes} process(es) in train.batch_size, {total}"
        )


def build_inference(config: Config, info: DatasetInfo, model: nn.Module) -> Inference:
    """How validation sees an image."""
    val = config.val
    slide = val.mode == "slide"
    try:
        return Inference(
            model,
            mode=val.mode,
            crop_size=(val.crop_size or config.data.crop_size) if slide else None,
            stride=val.stride,
            scales=val.scales,
            flip=val.flip,
            amp_dtype=AMP_DTYPES[config.train.amp],
            flip_pairs=info.flip_pairs,
            multiple=val.multiple,
            slide_from=val.slide_from,
            combine=val.combine,
        )
    except ValueError as error:
        raise ConfigError(f"val: {error}") from error


def build_validation(
    config: Config, dataset: Dataset, folder: RunFolder | None = None, progress: Any = None
) -> Validation:
    """The validation of a run; without a folder it draws nothing."""
    return Validation(
        dataset,
        build_eval_transform(config),
        partial(build_inference, config, dataset.info),
        workers=config.data.workers,
        samples=config.run.samples,
        folder=None if folder is None else folder.samples,
        progress=progress,
    )


def build_run_folder(config: Config) -> RunFolder:
    return RunFolder(str(config.run.folder), config.run.keep)


def checkpoint_to_resume(config: Config, folder: RunFolder) -> dict[str, Any] | None:
    """The checkpoint that `run.resume` asks for; an error where the folder is taken."""
    folder.check_free(config.run.resume, config.run.overwrite)
    return folder.checkpoint_to_resume(config.run.resume)


def progress_to_resume(
    config: Config, folder: RunFolder, checkpoint: dict[str, Any] | None
) -> Progress:
    """What the loop remembers; the best starts anew where its best.pt is not in the folder."""
    if checkpoint is None:
        return Progress()
    progress = Progress(**checkpoint["training"]["progress"])
    if config.run.overwrite or not folder.has_best(progress.best_mean_iou):
        progress.best_mean_iou = -math.inf
        progress.best_iteration = checkpoint["training"]["iteration"]
    return progress


def build_reporter(config: Config, folder: RunFolder | None, process: Process, start: int) -> Any:
    """Who tells what happens, as a context manager; without a folder it only prints."""
    if not process.is_main:
        return nullcontext(SilentEvents())
    path = None if folder is None else folder.path
    return Reporter(config.train.iterations, start, path, config.run.tensorboard)


@contextmanager
def start_process(config: Config) -> Iterator[Process]:
    """Determinism, the process group and the seed: all that comes before the first object."""
    set_deterministic(config.train.deterministic)
    with process_group(config.device) as process:
        set_seed(config.train.seed)
        yield process


def build_plan(config: Config) -> Plan:
    return Plan(
        config.train.iterations,
        log_every=config.run.log_every,
        validate_every=config.val.every,
        save_every=config.run.save_every or config.val.every,
        patience=config.val.patience,
    )


def build_checkpoint(
    config: Config, trainer: Trainer, progress: Progress, info: DatasetInfo
) -> dict[str, Any]:
    """All of a run at this iteration, as `engine.checkpoints` describes it."""
    return {
        "model": trainer.model.arguments,
        **trainer.weights(),
        "meta": {
            "classes": list(info.classes),
            "palette": [list(color) for color in info.palette],
            "normalize": build_normalize(config).to_dict(),
            "ignore_index": info.ignore_index,
            "flip_pairs": [list(pair) for pair in info.flip_pairs],
            "dataset": info.name,
        },
        "training": {**trainer.training_state(), "progress": asdict(progress)},
        "config": to_plain(config),
        "metrics": progress.metrics,
    }


def load_predictor(
    path: str | Path, device: str | torch.device = "auto"
) -> tuple[SegmentationModel, dict[str, Any]]:
    """The network of a checkpoint, ready to predict, and what its labels and images mean.

    Averaged weights are taken where the checkpoint has them. Returns the network in eval mode, and
    the `meta` of the checkpoint. Raises CheckpointError where the file cannot be used.
    """
    checkpoint = read_checkpoint(path)
    try:
        model = create_model(**checkpoint["model"])
        model.load_state_dict(checkpoint["ema"] or checkpoint["state_dict"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its network cannot be built: {error}") from error
    return model.to(choose_device(str(device))).eval(), checkpoint["meta"]
