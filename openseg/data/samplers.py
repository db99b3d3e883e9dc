# SPDX-License-Identifier: MIT
"""ResumableSampler: which sample comes when, as a function of the position in one endless stream.

Rank r of W takes the r-th block of each global batch, so that with equal `batch_size` × W the
global batches, and their order, do not depend on W.
"""

from collections.abc import Iterator

import numpy as np


class ResumableSampler:
    """An infinite batch sampler over (epoch, index) keys: shuffled epochs, one behind the other.

    length: samples in the data set; batch_size: samples of this rank in each batch.
    start: samples already consumed by all ranks together; the stream goes on right after them.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int = 0,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
    ) -> None:
        if length < 1 or batch_size < 1:
            raise ValueError(f"length {length} and batch_size {batch_size} must be 1 or more")
        if start < 0 or not 0 <= rank < world_size:
            raise ValueError(f"start {start} must be >= 0, rank {rank} within 0..{world_size - 1}")
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.start = start
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        first = self.start + self.rank * self.batch_size
        while True:
            batch = []
            for position in range(first, first + self.batch_size):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = self._order(epoch)
                batch.append((epoch, int(order[position % self.length])))
            yield batch
            first += self.batch_size * self.world_size

    def _order(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.length)
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, epoch)))
        return rng.permutation(self.length)
