# SPDX-License-Identifier: MIT
"""Train a network: `python -m openseg.train --cfg camvid/ocrnet_r18 data.root=… key=value…`.

Several GPUs: `torchrun --nproc-per-node 4 -m openseg.train …`; the total batch stays the same.
"""

import argparse
import logging
import math
from typing import Any, Literal

from openseg import build
from openseg.cli import run
from openseg.config import Config, describe, load_config, shipped_configs, to_yaml
from openseg.config.loading import differences
from openseg.data import Dataset
from openseg.engine import environment
from openseg.engine.distributed import Process
from openseg.engine.reporting import duration
from openseg.engine.run_folder import RunFolder
from openseg.engine.trainer import Trainer
from openseg.engine.training import Progress, peak_memory, train, try_out

log = logging.getLogger("openseg")


def main() -> int:
    options = _parse()
    config = load_config(options.cfg, options.overrides)
    if options.print_config:
        print(to_yaml(config), end="")
        return 0
    with build.start_process(config) as process:
        return _try_out(config, process) if config.dry_run else _train(config, process)


def _train(config: Config, process: Process) -> int:
    folder = build.build_run_folder(config)
    checkpoint = build.checkpoint_to_resume(config, folder)
    train_set, val_set = build.build_datasets(config)
    resumes = checkpoint is not None
    model, weights_report = build.build_model(config, train_set.info.num_classes, resumes)
    trainer = build.build_trainer(config, model, train_set.info, process)
    progress = build.progress_to_resume(config, folder, checkpoint)
    if checkpoint is not None:
        trainer.resume(checkpoint)
    batches = build.build_batches(config, train_set, process, trainer.samples)

    def save(kind: Literal["last", "best"]) -> None:
        contents = build.build_checkpoint(config, trainer, progress, train_set.info)
        if process.is_main:
            folder.save(kind, contents)

    if process.is_main:
        folder.prepare(config.run.overwrite)
        folder.describe(to_yaml(config), environment.collect())
    with build.build_reporter(config, folder, process, trainer.iteration) as reporter:
        log.info("%s", _summary(trainer, train_set, val_set))
        if weights_report is not None:
            log.info("%s", weights_report)
        if checkpoint is not None:
            log.info("resumed at iteration %d", trainer.iteration)
            for text in differences(config, checkpoint["config"]):
                log.info("changed since: %s", text)
        validation = build.build_validation(config, val_set, folder, reporter.on_validating)
        plan = build.build_plan(config)
        stopped = train(trainer, batches, plan, progress, reporter, validation, save)
        if stopped is not None:
            log.info(
                "stopped at iteration %d; go on with the same command and run.resume=auto",
                trainer.iteration,
            )
            return 128 + stopped
        if validation.metrics is not None:
            log.info("%s", validation.metrics)
        log.info("%s", _best(progress, folder))
    return 0


def _best(progress: Progress, folder: RunFolder) -> str:
    if not math.isfinite(progress.best_mean_iou):
        return f"{folder.best} was not written: no validation had a mean IoU"
    percent, iteration = 100 * progress.best_mean_iou, progress.best_iteration
    return f"best mean IoU {percent:.2f} % at iteration {iteration}: {folder.best}"


def _try_out(config: Config, process: Process) -> int:
    """Build everything, take two steps and look at one validation image; write nothing."""
    train_set, val_set = build.build_datasets(config)
    model, _ = build.build_model(config, train_set.info.num_classes)
    trainer = build.build_trainer(config, model, train_set.info, process)
    batches = build.build_batches(config, train_set, process)
    loss, step_seconds = try_out(trainer, batches)
    validation = build.build_validation(config, val_set)
    image_seconds = validation.seconds_per_image(trainer.best_model)

    plan = build.build_plan(config)
    validations = math.ceil(plan.iterations / plan.validate_every)
    seconds = plan.iterations * step_seconds
    seconds += validations * image_seconds * len(val_set) / process.world_size
    if process.is_main:
        print(_summary(trainer, train_set, val_set))
        print(f"loss {loss:.4f}; {step_seconds:.3f} s an iteration", end=", ")
        print(f"{image_seconds:.3f} s a validation image")
        print(f"memory at its peak: {peak_memory(process.device) / 2**20:,.0f} MiB")
        print(f"expected time: {duration(seconds)} for {plan.iterations} iterations", end=" ")
        print(f"and {validations} validations of {len(val_set)} images; nothing was written")
    return 0


def _summary(trainer: Trainer, train_set: Dataset, val_set: Dataset) -> str:
    """The run in one line."""
    arguments: Any = trainer.model.arguments
    process = trainer.process
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    return (
        f"{arguments['name']}, {arguments['backbone']}: {parameters / 1e6:.1f} M parameters; "
        f"{train_set.info.num_classes} classes of {train_set.info.name}, {len(train_set)} images "
        f"to train on, {len(val_set)} to validate; {process.world_size} × {process.device}"
    )


def _parse() -> argparse.Namespace:
    options = "\n".join(f"  {key}={value}\n      {text}" for key, value, text in describe())
    parser = argparse.ArgumentParser(
        prog="python -m openseg.train",
        description="Train a network. Options are given as key=value words.",
        epilog=f"configurations: {', '.join(shipped_configs())}\n\noptions, as they are without a "
        f"configuration:\n{options}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cfg", required=True, metavar="NAME", help="configuration or YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as train.lr=0.02")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resulting configuration and leave"
    )
    return parser.parse_intermixed_args()  # key=value words may stand anywhere


if __name__ == "__main__":
    run(main)
