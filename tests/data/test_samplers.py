# SPDX-License-Identifier: MIT
"""ResumableSampler: one stream, whatever the number of ranks and wherever a run was cut."""

from itertools import chain, islice

import pytest

from openseg.data import ResumableSampler


def take(batches, **arguments):
    return list(islice(ResumableSampler(**arguments), batches))


def flat(batches):
    return list(chain.from_iterable(batches))


def test_each_epoch_visits_each_sample_once_in_a_new_order():
    keys = flat(take(9, length=6, batch_size=4, seed=3))
    epochs = [keys[first : first + 6] for first in range(0, 36, 6)]
    for number, epoch in enumerate(epochs):
        assert {e for e, _ in epoch} == {number}
        assert sorted(i for _, i in epoch) == list(range(6))
    assert len({tuple(i for _, i in epoch) for epoch in epochs}) > 1


def test_order_depends_on_the_seed_alone():
    assert take(5, length=50, batch_size=4, seed=1) == take(5, length=50, batch_size=4, seed=1)
    assert take(5, length=50, batch_size=4, seed=1) != take(5, length=50, batch_size=4, seed=2)
    plain = take(2, length=3, batch_size=2, shuffle=False)
    assert plain == [[(0, 0), (0, 1)], [(0, 2), (1, 0)]]


@pytest.mark.parametrize("consumed", [1, 3, 7, 20])
def test_start_resumes_exactly(consumed):
    whole = flat(take(12, length=7, batch_size=4))
    rest = flat(take(5, length=7, batch_size=4, start=consumed))
    assert rest == whole[consumed : consumed + 20]


@pytest.mark.parametrize("world_size", [2, 3, 6])
@pytest.mark.parametrize("start", [0, 18])
def test_global_batches_do_not_depend_on_the_world_size(world_size, start):
    alone = take(8, length=10, batch_size=6, start=start)
    ranks = [
        take(8, length=10, batch_size=6 // world_size, start=start, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    assert [flat(parts) for parts in zip(*ranks, strict=True)] == alone


@pytest.mark.parametrize(
    "wrong", [{"length": 0}, {"batch_size": 0}, {"start": -1}, {"rank": 2}, {"rank": -1}]
)
def test_impossible_arguments(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ResumableSampler(**{"length": 4, "batch_size": 2, "world_size": 2, **wrong})
