# SPDX-License-Identifier: MIT
"""The folder of a run: what lies where, and whether a new run may use it.

config.yaml  environment.json  log.txt  metrics.jsonl  curves.png
checkpoints/  last.pt · best.pt · iteration_00001000.pt, …
samples/      iteration_00001000.png, …
"""

import os
import shutil
from pathlib import Path
from typing import Any

from openseg.engine.checkpoints import read_checkpoint, save_checkpoint
from openseg.engine.files import make_folder
from openseg.errors import CheckpointError, OutputError

_FILES = ("config.yaml", "environment.json", "log.txt", "metrics.jsonl", "curves.png")
_FOLDERS = ("checkpoints", "samples", "tensorboard")


class RunFolder:
    """`path` and the files below it; nothing is created before `prepare`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.last = self.checkpoints / "last.pt"

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

    def check_free(self, resume: str | None = None, overwrite: bool = False) -> None:
        """Raises OutputError where the folder holds another run and neither option allows it."""
        taken = self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir()))
        resumes_here = resume == "auto" or (
            resume is not None and Path(resume).resolve().is_relative_to(self.path.resolve())
        )
        if taken and not (resumes_here or overwrite):
            raise OutputError(
                f"{self.path}: is not empty; go on with run.resume=auto, replace what is there "
                "with run.overwrite=true, or choose another run.name"
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

    def save_best(self, checkpoint: dict[str, Any]) -> None:
        """Save best.pt, which is for use: without the state of training."""
        save_checkpoint(self.checkpoints / "best.pt", {**checkpoint, "training": None})

    def save_last(self, checkpoint: dict[str, Any], keep: int = 0) -> None:
        """Save last.pt, and `keep` of the newest ones under their iteration too."""
        save_checkpoint(self.last, checkpoint)
        if keep:
            named = self.checkpoints / f"iteration_{checkpoint['training']['iteration']:08d}.pt"
            named.unlink(missing_ok=True)
            try:
                os.link(self.last, named)
            except OSError:  # a file system without links
                save_checkpoint(named, checkpoint)
        older = sorted(self.checkpoints.glob("iteration_*.pt"))
        for path in older[: len(older) - keep]:
            path.unlink()
