# SPDX-License-Identifier: MIT
"""What test_distributed.py starts under torchrun: two processes that train and evaluate."""

import sys
from pathlib import Path

import torch

from openseg.engine.distributed import any_process, gather, mean_over_processes, process_group
from tests.engine.pictures import count_and_write
from tests.engine.tiny import make_batch, make_trainer


def main() -> None:
    folder = Path(sys.argv[1])
    with process_group("cpu") as process:
        trainer = make_trainer(process, norm=False, dropout=0.0, micro_batch_size=1)
        losses = []
        for index in range(3):
            share = {k: v.chunk(2)[process.rank] for k, v in make_batch(index).items()}
            loss = trainer.step(share["image"], share["label"])["loss"]
            losses.append(float(mean_over_processes(loss)))
        told = {
            "losses": losses,
            "states": gather(trainer.model.state_dict()),
            "samples": trainer.samples,
            "any": [any_process(process.rank == 1), any_process(False)],
            "ranks": gather(process.rank),
            "counts": gather(count_and_write(folder / f"of{process.rank}")),
            "random": len(trainer.training_state()["random"]),
        }
        if process.rank == 1:
            trainer.model.head.bias.detach()[0] = torch.nan
        told["broken"] = gather(trainer.broken_weights())
        if process.is_main:
            torch.save(told, folder / "told.pt")


if __name__ == "__main__":
    main()
