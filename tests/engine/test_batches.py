# SPDX-License-Identifier: MIT
"""Endless batches: their keys, and a user's error in a loader process."""

import multiprocessing
import os
import signal

import pytest
import torch

from openseg.engine.batches import endless_batches
from openseg.errors import DataError


class Numbers:
    def __getitem__(self, key):
        if key == 13:
            raise DataError("item 13 is damaged")
        return {"image": torch.tensor(key), "label": torch.tensor(key % 2)}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_keys(workers):
    found = list(endless_batches(Numbers(), [[1, 2], [5, 4]], workers))
    assert [batch["image"].tolist() for batch in found] == [[1, 2], [5, 4]]
    assert [batch["label"].tolist() for batch in found] == [[1, 0], [1, 0]]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_the_data_is_raised_as_it_is(workers):
    batches = endless_batches(Numbers(), [[1, 2], [12, 13]], workers)
    next(batches)
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == "item 13 is damaged"


@pytest.mark.parametrize("workers", [0, 1])
def test_random_numbers_of_the_loop_are_left_alone(workers):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(endless_batches(Numbers(), [[1, 2]], workers))
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_loader_processes_outlive_a_signal_to_all_and_end_with_the_batches(number):
    before = set(multiprocessing.active_children())
    batches = endless_batches(Numbers(), [[n] for n in range(12)], workers=1)
    next(batches)
    (loader,) = set(multiprocessing.active_children()) - before
    os.kill(loader.pid, number)
    assert len(list(batches)) == 11
    loader.join(10)
    assert loader.exitcode == 0
