"""Statistics of a robot's numbers: what normalisation divides by, fitted in one pass over blocks of any size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q90": 0.90, "q99": 0.99}
SAMPLE_SIZE = 2**17  # rows kept for quantiles: 33 MB at 64 dims of float32


class NormalizationMode(StrEnum):
    """How a dimension's values are mapped to about [-1, 1]; all modes are affine, so they invert exactly."""

    MEAN_STD = "mean_std"
    MIN_MAX = "min_max"
    QUANTILE = "quantile"
    QUANTILE_10_90 = "quantile_10_90"
    IDENTITY = "identity"


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of `count` vectors of values as a model learns them, before normalisation. One entry a dimension."""

    mean: list[float]
    std: list[float]
    min: list[float]
    max: list[float]
    q01: list[float]
    q10: list[float]
    q90: list[float]
    q99: list[float]
    count: int

    @classmethod
    def from_values(cls, values: ArrayLike) -> FeatureStatistics:
        """Exact statistics of `values` (N, dim), in float64. Raises ValueError when N is 0 or a value is not finite."""
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 2 or len(array) == 0:
            raise ValueError(f"statistics need values of shape (N, dim) with N > 0, got shape {array.shape}")
        require_finite(array, "values")
        return cls(
            mean=array.mean(0).tolist(),
            std=array.std(0).tolist(),
            min=array.min(0).tolist(),
            max=array.max(0).tolist(),
            **_quantiles(array),
            count=len(array),
        )

    @property
    def dim(self) -> int:
        return len(self.mean)

    def affine(
        self, mode: NormalizationMode, minimum_range: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`(center, scale)`, each (dim,), of the map value -> (value - center) / scale.

        `scale` is the standard deviation or half the mode's range, and never below `minimum_range / 2`: a joint that
        hardly moved in the data (q01 = q99) cannot turn a millimetre into a thousand standard deviations (our choice;
        openpi#814 is what happens otherwise).
        """
        floor = np.broadcast_to(np.asarray(minimum_range, dtype=np.float64), (self.dim,)) / 2
        if mode is NormalizationMode.IDENTITY:
            return np.zeros(self.dim), np.ones(self.dim)
        if mode is NormalizationMode.MEAN_STD:
            return np.asarray(self.mean), np.maximum(self.std, floor)
        bounds = {
            NormalizationMode.MIN_MAX: (self.min, self.max),
            NormalizationMode.QUANTILE: (self.q01, self.q99),
            NormalizationMode.QUANTILE_10_90: (self.q10, self.q90),
        }
        low, high = (np.asarray(bound) for bound in bounds[mode])
        return (low + high) / 2, np.maximum((high - low) / 2, floor)


class StatisticsAccumulator:
    """`FeatureStatistics` of more values than fit into memory: one pass over blocks, in any number of processes.

    Mean, standard deviation, minimum and maximum are exact (float64; means and squared deviations are merged block by
    block, so that nothing cancels). Quantiles are exact up to `sample_size` rows. Of more rows, a uniform sample of
    that many is kept: those whose random priority is smallest, so that two samples merge into the sample of both. The
    rank of a quantile q is then off by about sqrt(q (1 - q) / sample_size), 0.03 % for q01. Our choice instead of a
    quantile sketch: exact for most datasets, and seeded, so that every process and every resumed run fits the same
    numbers (those of datasketches draw without a seed).

    Args:
        dim: values in a row.
        sample_size: rows kept for quantiles, at least 1000.
        seed: of the priorities; the same blocks in the same order and the same seed give the same statistics.

    Raises:
        ValueError: when `dim` or `sample_size` is too small.
    """

    def __init__(self, dim: int, *, sample_size: int = SAMPLE_SIZE, seed: int = 0) -> None:
        if dim < 1 or sample_size < 1000:
            raise ValueError(f"dim={dim} must be at least 1 and sample_size={sample_size} at least 1000")
        self.dim, self.sample_size, self.count = dim, sample_size, 0
        self._random = np.random.default_rng(seed)
        self._mean, self._squares = np.zeros(dim), np.zeros(dim)
        self._min, self._max = np.full(dim, np.inf), np.full(dim, -np.inf)
        self._rows: list[NDArray[Any]] = []
        self._priorities: list[NDArray[np.float64]] = []
        self._threshold = 1.0  # rows of a higher priority are not in the sample

    def update(self, values: ArrayLike) -> None:
        """Takes in a block (..., dim). Raises ValueError on other dims or a value that is not finite."""
        block = np.asarray(values)
        if block.ndim == 0 or block.shape[-1] != self.dim:
            raise ValueError(f"statistics are of {self.dim} dims, got a block of shape {block.shape}")
        block = block.reshape(-1, self.dim)
        if not len(block):
            return
        deviations = block.astype(np.float64)
        with np.errstate(invalid="ignore"):
            mean = deviations.mean(0)
        if not np.isfinite(mean).all():
            require_finite(block, "values")
        deviations -= mean
        squares = np.einsum("nd,nd->d", deviations, deviations)
        self._add_moments(len(block), mean, squares, block.min(0), block.max(0))
        priorities = self._random.random(len(block))
        chosen = priorities < self._threshold
        self._add_rows(block[chosen], priorities[chosen])

    def merge(self, other: StatisticsAccumulator) -> None:
        """Takes in what another accumulator has seen. Raises ValueError when it is of other dims."""
        if other.dim != self.dim:
            raise ValueError(f"statistics of {other.dim} dims cannot be merged into those of {self.dim}")
        if not other.count:
            return
        self._add_moments(other.count, other._mean, other._squares, other._min, other._max)
        self._threshold = min(self._threshold, other._threshold)
        for rows, priorities in zip(other._rows, other._priorities, strict=True):
            self._add_rows(rows, priorities)

    def result(self) -> FeatureStatistics:
        """The statistics of everything seen. Raises ValueError when that is nothing."""
        if not self.count:
            raise ValueError("there are no statistics of no values: update() was never given any")
        self._shrink()
        return FeatureStatistics(
            mean=self._mean.tolist(),
            std=np.sqrt(self._squares / self.count).tolist(),
            min=self._min.tolist(),
            max=self._max.tolist(),
            **_quantiles(np.concatenate(self._rows)),
            count=self.count,
        )

    def _add_moments(
        self, count: int, mean: NDArray[Any], squares: NDArray[Any], low: NDArray[Any], high: NDArray[Any]
    ) -> None:
        total = self.count + count
        difference = mean - self._mean
        self._mean = self._mean + difference * (count / total)
        self._squares = self._squares + squares + np.square(difference) * (self.count * count / total)
        self._min, self._max = np.minimum(self._min, low), np.maximum(self._max, high)
        self.count = total

    def _add_rows(self, rows: NDArray[Any], priorities: NDArray[np.float64]) -> None:
        self._rows.append(rows.copy())
        self._priorities.append(priorities)
        if sum(map(len, self._priorities)) >= 2 * self.sample_size:
            self._shrink()

    def _shrink(self) -> None:
        rows, priorities = np.concatenate(self._rows), np.concatenate(self._priorities)
        keep = priorities < self._threshold
        if keep.sum() > self.sample_size:
            self._threshold = float(np.partition(priorities[keep], self.sample_size)[self.sample_size])
            keep = priorities < self._threshold
        self._rows, self._priorities = [rows[keep]], [priorities[keep]]


def require_finite(array: NDArray[Any], what: str, names: Sequence[str] | None = None) -> None:
    """Raises ValueError naming the first value of `array` (..., dim) that is not finite, its index and its dim."""
    if np.isfinite(array).all():
        return
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    dim = names[index[-1]] if names is not None else index[-1]
    raise ValueError(f"{what} is {array[index]} at index {index} (dim {dim!r}): values must be finite")


def _quantiles(rows: NDArray[Any]) -> dict[str, list[float]]:
    values = np.quantile(rows.astype(np.float64), list(QUANTILES.values()), axis=0)
    return {name: value.tolist() for name, value in zip(QUANTILES, values, strict=True)}


__all__ = ["FeatureStatistics", "NormalizationMode", "StatisticsAccumulator", "require_finite"]
