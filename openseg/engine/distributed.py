# SPDX-License-Identifier: MIT
"""What `torchrun` says about the processes of a run; without it the run is one process.

A run is split over processes without changing it: `train.batch_size` is the total of all of them.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from openseg.errors import ConfigError


@dataclass(frozen=True)
class Process:
    """This process of a run: `rank` of `world_size`, and the device that it works on."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one process that writes files."""
        return self.rank == 0


@contextmanager
def process_group(device: str = "auto") -> Iterator[Process]:
    """Join the processes that torchrun started, and leave them at the end.

    device: "auto", "cpu", "cuda" or "cuda:N". Under torchrun each process takes the GPU of its
        local rank. Raises ConfigError where the device does not exist.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = choose_device(device, local_rank if world_size > 1 else None)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield Process(chosen)
        return
    # gloo besides NCCL: short messages between the processes never wait for a GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Process(chosen, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
        # A thread of gloo lets go of the last tensors after they were received, for which it needs
        # the interpreter: it may have it now, for the process is aborted if it asks when that ends.
        time.sleep(0.2)


def choose_device(name: str = "auto", local_rank: int | None = None) -> torch.device:
    """The device of a name; ConfigError where it does not exist."""
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device: {name!r} given, auto, cpu, cuda or cuda:N expected") from None
    if device.type != "cuda":
        return device
    index = device.index or 0
    if local_rank is not None:
        index = local_rank
    if index >= count:
        found = f"PyTorch sees {count} GPUs" if count else "PyTorch sees no GPU"
        raise ConfigError(f"device: {name} asks for GPU {index}, but {found}; use device=cpu")
    return torch.device("cuda", index)


def any_process(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def mean_over_processes(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all processes, on the CPU."""
    values = values.detach().cpu()
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def gather(value: Any) -> list[Any]:
    """A picklable value of each process, in the order of their ranks."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
