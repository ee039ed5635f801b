"""The order in which windows are drawn: shuffled, by weight, and the same after an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from .trajectory_dataset import TrajectoryDataset

POOL_WINDOWS = 1 << 19  # shuffled at once; 4 MB of indices
BLOCK_WINDOWS = 1 << 10  # neighbours that come into a pool together
LEAST_BLOCKS = 256  # of a source, so that what an epoch takes of it comes from all over it


class MixtureSampler(Sampler[int]):
    """Window indices for one epoch: each window once, or, with source weights, every source by its weight.

    With weights an epoch is as long as without; a source gives its share to the window, and its windows come evenly:
    none a second time before all have come once. A share smaller than the source is taken from all over it, from
    another place every epoch.

    Up to `POOL_WINDOWS` windows the order is a uniform shuffle. Of more, blocks of neighbouring windows are shuffled,
    pools of 512 random blocks are filled with them, and each pool is shuffled as a whole. A batch is then still a
    mixture of thousands of episodes, while the steps in use at a time fit into memory (tens of MB out of any number of
    GB) and lie on disk in pieces worth reading; a uniform shuffle of 50 million windows would touch a page or two of
    the disk for each of them, and keep 400 MB of indices. Our choice.

    The last batch of an epoch is filled up with the epoch's first windows, so that every step is a whole one however
    many processes and accumulated passes share it; otherwise each would fill up, or leave short, a part of its own.

    The order is a function of `seed` and the epoch alone, so a resumed run continues exactly.

    Args:
        dataset: whose windows are drawn.
        seed: of the order.
        batch_windows: windows of a step, over all processes and accumulated passes; 1 leaves the last batch short.
    """

    def __init__(self, dataset: TrajectoryDataset, seed: int, batch_windows: int = 1) -> None:
        windows = dataset.windows_by_source()
        self._first = np.array([own.start for own in windows], dtype=np.int64)
        self._counts = np.array([len(own) for own in windows], dtype=np.int64)
        self._quotas = _quotas(self._counts, dataset.source_weights)
        self.windows, self.seed, self.epoch = len(dataset), seed, 0
        self._lacking = -self.windows % batch_windows

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.windows + self._lacking

    def __iter__(self) -> Iterator[int]:
        order = self._shuffled()
        first = list(islice(order, self._lacking))
        return chain(first, order, islice(cycle(first), self._lacking))

    def _shuffled(self) -> Iterator[int]:
        random = np.random.default_rng([self.seed, self.epoch])
        source, start, size = self._blocks(random)
        order = random.permutation(len(size))
        ends = np.cumsum(size[order])
        pools = np.split(order, np.searchsorted(ends, np.arange(POOL_WINDOWS, self.windows, POOL_WINDOWS)))
        for pool in pools:
            yield from random.permutation(self._windows(source[pool], start[pool], size[pool])).tolist()

    def _blocks(self, random: np.random.Generator) -> tuple[NDArray[np.int64], ...]:
        """Source, start and size of every block of this epoch; a start counts in its source, and wraps around it.

        Blocks lie end to end when a source gives all of its windows or more, and evenly spread when it gives fewer.
        """
        columns: list[tuple[NDArray[np.int64], ...]] = []
        for source, (count, quota) in enumerate(zip(self._counts.tolist(), self._quotas.tolist(), strict=True)):
            if not quota:
                continue
            size = min(BLOCK_WINDOWS, max(1, quota // LEAST_BLOCKS))
            blocks = -(-quota // size)
            sizes = np.full(blocks, size)
            sizes[-1] = quota - size * (blocks - 1)
            number = np.arange(blocks)
            spread = number * count // blocks if count > blocks * size else number * size
            columns.append((np.full(blocks, source), random.integers(count) + spread, sizes))
        return tuple(np.concatenate(column) for column in zip(*columns, strict=True))

    def _windows(self, source: NDArray[Any], start: NDArray[Any], size: NDArray[Any]) -> NDArray[np.int64]:
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        owner = np.repeat(source, size)
        return self._first[owner] + (np.repeat(start, size) + within) % self._counts[owner]


def _quotas(counts: NDArray[np.int64], weights: list[float] | None) -> NDArray[np.int64]:
    """How many windows of an epoch each source gives; a source without windows gives none, whatever its weight."""
    if weights is None:
        return counts
    shares = np.where(counts > 0, weights, 0.0)
    ends = np.round(np.cumsum(shares) / shares.sum() * counts.sum()).astype(np.int64)
    return np.diff(ends, prepend=0)


__all__ = ["MixtureSampler"]
