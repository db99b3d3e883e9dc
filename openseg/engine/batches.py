# SPDX-License-Identifier: MIT
"""Endless batches from a data set, an order of its keys and loader processes.

The loader has a generator of its own: its worker seeds take nothing from the global one, or dropout
would depend on whether a run was resumed.
"""

import signal
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from openseg.errors import OpensegError


def endless_batches(
    dataset: Any, batches_of_keys: Iterable[list[Any]], workers: int = 0, pin_memory: bool = False
) -> Iterator[dict[str, Tensor]]:
    """Batches {"image": [B, C, H, W], "label": [B, H, W]} of `dataset[key]` for lists of keys.

    A user's error in a loader process, such as a damaged image, is raised here as it is.
    """
    loader = DataLoader(
        _ErrorsAsItems(dataset),
        batch_sampler=batches_of_keys,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        worker_init_fn=_leave_signals_to_the_loop,
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, OpensegError):
            raise batch
        yield batch


class _ErrorsAsItems(Dataset[Any]):
    """A user's error is returned, not raised: a loader would wrap it in the worker's traceback."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except OpensegError as error:
            return error


def _collate(items: list[Any]) -> Any:
    errors = [item for item in items if isinstance(item, OpensegError)]
    return errors[0] if errors else default_collate(items)


def _leave_signals_to_the_loop(worker: int) -> None:
    """A terminal, `timeout` or a scheduler signals all processes, and the loop wants its batches.

    The loader ends its processes by a message, and they end by themselves without their parent.
    """
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, signal.SIG_IGN)
