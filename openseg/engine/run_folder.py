# SPDX-License-Identifier: MIT
"""The folder of a run: what lies where, and whether a new run may use it.

config.yaml  environment.json  log.txt  metrics.jsonl  curves.png
checkpoints/  last.pt · best.pt · iteration_00001000.pt, …
samples/      iteration_00001000.png, …
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

from openseg.engine.checkpoints import read_checkpoint, save_checkpoint
from openseg.engine.files import make_folder, replacing
from openseg.errors import CheckpointError, OutputError

_FILES = ("config.yaml", "environment.json", "log.txt", "metrics.jsonl", "curves.png")
_FOLDERS = ("checkpoints", "samples", "tensorboard")


class RunFolder:
    """`path` and the files below it; nothing is created before `prepare`."""

    def __init__(self, path: str | Path, keep: int = 0) -> None:
        """`keep`: how many of the newest checkpoints stay under their iteration, beside last.pt."""
        self.path = Path(path)
        self.keep = keep
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.last = self.checkpoints / "last.pt"
        self.best = self.checkpoints / "best.pt"

    def checkpoint_to_resume(self, resume: str | None) -> dict[str, Any] | None:
        """The checkpoint that `resume` asks for: none, "auto" (last.pt where there is one), a path.

        Raises CheckpointError where it cannot be read or was saved for use, without the state of
        training.
        """
        if resume is None or (resume == "auto" and not self.last.exists()):
            return None
        path = self.last if resume == "auto" else Path(resume)
        checkpoint = read_checkpoint(path)
        if checkpoint["training"] is None:
            raise CheckpointError(
                f"{path}: has weights and no state of training (best.pt keeps none): resume from "
                f"{path.with_name('last.pt')}, or start anew with model.weights={path}"
            )
        return checkpoint

    def has_best(self, mean_iou: float) -> bool:
        """Whether best.pt is here, and that of this mean IoU: not of a later part of the run."""
        try:
            return bool(read_checkpoint(self.best)["metrics"]["mean_iou"] == mean_iou)
        except (CheckpointError, KeyError):
            return False

    def check_free(self, resume: str | None = None, overwrite: bool = False) -> None:
        """Raises OutputError where the folder holds another run and neither option allows it."""
        taken = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        resumes_here = resume == "auto" or (
            resume is not None and Path(resume).resolve().is_relative_to(self.path.resolve())
        )
        if taken and not (resumes_here or overwrite):
            raise OutputError(
                f"{self.path}: is not empty; go on with run.resume=auto, replace what is there "
                "with run.overwrite=true, or choose another run.folder"
            )

    def prepare(self, overwrite: bool = False) -> None:
        """Create the folder; with `overwrite` remove what a run has written, and nothing else."""
        make_folder(self.path)
        if overwrite:
            for name in _FILES:
                (self.path / name).unlink(missing_ok=True)
            for name in _FOLDERS:
                shutil.rmtree(self.path / name, ignore_errors=True)
        make_folder(self.checkpoints)

    def describe(self, config: str, environment: dict[str, Any]) -> None:
        """Write config.yaml, which `--cfg` reads, and environment.json."""
        environment_text = json.dumps(environment, indent=1) + "\n"
        for name, text in (("config.yaml", config), ("environment.json", environment_text)):
            with replacing(self.path / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def save(self, kind: Literal["last", "best"], checkpoint: dict[str, Any]) -> None:
        """Save last.pt, from which training goes on, or best.pt, which is for use and leaves the
        state of training out."""
        if kind == "best":
            save_checkpoint(self.best, {**checkpoint, "training": None})
            return
        save_checkpoint(self.last, checkpoint)
        if self.keep:
            self._save_under_iteration(checkpoint)

    def _save_under_iteration(self, checkpoint: dict[str, Any]) -> None:
        path = self.checkpoints / f"iteration_{checkpoint['training']['iteration']:08d}.pt"
        path.unlink(missing_ok=True)
        try:
            os.link(self.last, path)
        except OSError:  # a file system without links
            save_checkpoint(path, checkpoint)
        # Later iterations are older files: of a run that was then resumed from before them.
        by_age = sorted(self.checkpoints.glob("iteration_*.pt"), key=lambda p: (p <= path, p))
        for older in by_age[: -self.keep]:
            older.unlink()
