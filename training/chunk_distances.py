"""How far two sets of motion lie from each other: energy distance and coverage, with intervals. Arrays in, numbers out.

Windows of one episode overlap, so they are no independent draws. Every function that takes `groups` treats a group (an
episode) as the unit: pairs within a group are left out of distances, and intervals come from drawing groups again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
DRAWS = 200
FLOOR_SHARE = 0.95


@dataclass(frozen=True)
class Bootstrapped:
    """A number `value` and what it was for groups drawn again, `draws` (n,); differences of two are paired."""

    value: float
    draws: Floats

    @property
    def interval(self) -> tuple[float, float]:
        """The middle 95 % of the draws (percentile bootstrap)."""
        low, high = np.quantile(self.draws, [0.025, 0.975])
        return float(low), float(high)

    @property
    def spans_zero(self) -> bool:
        """Whether the data leave open on which side of zero the number lies."""
        low, high = self.interval
        return low <= 0 <= high

    def __sub__(self, other: Bootstrapped) -> Bootstrapped:
        return Bootstrapped(self.value - other.value, self.draws - other.draws)

    def to_dict(self) -> dict[str, Any]:
        return {"value": self.value, "interval": list(self.interval)}


def energy_distance(
    x: ArrayLike,
    y: ArrayLike,
    x_groups: ArrayLike | None = None,
    y_groups: ArrayLike | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Bootstrapped:
    """Energy distance of the samples `x` (N, F) and `y` (M, F), as a share: 0 for equal distributions, at most 1.

    Szekely & Rizzo 2013, "Energy statistics": (2 E|X-Y| - E|X-X'| - E|Y-Y'|) / (2 E|X-Y|), the energy coefficient,
    which does not grow with scale or with the number of dims. Expectations leave out pairs of one group, so the
    estimate is unbiased and can be slightly negative. Without groups every row is its own.

    `y` is drawn again in the same way by every call with the same `seed` and `y_groups`: distances of several `x` to
    one `y` can be subtracted.

    Raises:
        ValueError: when the samples have another number of columns, or fewer than two rows.
    """
    x, y = _table(x, "x"), _table(y, "y")
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x has {x.shape[1]} columns and y {y.shape[1]}: they must be the same features")
    x_groups, y_groups = _groups(x_groups, len(x)), _groups(y_groups, len(y))
    y_weights = _with_ones(_drawn_weights(y_groups, draws, np.random.default_rng(seed)))
    x_weights = _with_ones(_drawn_weights(x_groups, draws, np.random.default_rng(seed + 1)))
    across = _weighted_mean(distances(x, y), x_weights, y_weights)
    within_x = _weighted_mean_between_groups(distances(x, x), x_weights, x_groups)
    within_y = _weighted_mean_between_groups(distances(y, y), y_weights, y_groups)
    shares = np.divide(2 * across - within_x - within_y, 2 * across, out=np.zeros_like(across), where=across > 0)
    return Bootstrapped(float(shares[0]), shares[1:])


def energy_floor(y: ArrayLike, groups: ArrayLike | None = None, *, draws: int = DRAWS, seed: int = 0) -> float:
    """What `energy_distance` shows of two halves of the same data: 95 % of random halves of its groups differ by less.

    A distance below it says no more than that the data are few.
    """
    y = _table(y, "y")
    groups = _groups(groups, len(y))
    if len(np.unique(groups)) < 4:  # half of them must hold two
        groups = np.arange(len(y))
    _, own = np.unique(groups, return_inverse=True)
    count = int(own.max()) + 1
    order = np.argsort(np.random.default_rng(seed).random((draws, count)), axis=1)
    first = (order < count // 2)[:, own].astype(np.float64)
    between = distances(y, y)
    across = _weighted_mean(between, first, 1 - first)
    within = sum(_weighted_mean_between_groups(between, half, groups) for half in (first, 1 - first))
    shares = np.divide(2 * across - within, 2 * across, out=np.zeros_like(across), where=across > 0)
    return float(max(np.quantile(shares, FLOOR_SHARE), 0.0))


def covered(
    real: ArrayLike, samples: ArrayLike, groups: ArrayLike | None = None, *, neighbours: int = 5
) -> tuple[NDArray[np.bool_], float]:
    """Which rows of `real` (N, F) have one of `samples` (M, F) among their neighbours (N,), and the samples' density.

    Naeem et al. 2020, "Reliable fidelity and diversity metrics for generative models": around each real row lies a
    ball that reaches its k-th nearest real row, here of another group, since the next window of the same episode is
    always near. The mean of the first is coverage (diversity: 1 is all of the real motion). Density is the number of
    balls that a sample lies in, over k: about 1 for samples like the data, 0 for samples that lie nowhere near them.
    """
    real, samples = _table(real, "real"), _table(samples, "samples")
    groups = _groups(groups, len(real))
    between = distances(real, real)
    between[groups[:, None] == groups] = np.inf
    smallest_choice = int(np.isfinite(between).sum(axis=1).min())
    k = min(neighbours, smallest_choice)
    radius = np.partition(between, k - 1, axis=1)[:, k - 1]
    inside: NDArray[np.bool_] = np.less_equal(distances(real, samples), radius[:, None])
    return np.any(inside, axis=1), float(inside.sum(axis=0).mean() / k)


def bootstrap_mean(
    values: ArrayLike, groups: ArrayLike | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Bootstrapped:
    """The mean of `values` (N,), with groups drawn again."""
    values = np.asarray(values, dtype=np.float64)
    weights = _with_ones(_drawn_weights(_groups(groups, len(values)), draws, np.random.default_rng(seed)))
    means = weights @ values / weights.sum(axis=1)
    return Bootstrapped(float(means[0]), means[1:])


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Bootstrapped:
    """The ratio of two means over the same rows (N,), with groups drawn again; 0 where the denominator's mean is 0."""
    weights = _with_ones(
        _drawn_weights(_groups(groups, len(np.asarray(numerators))), draws, np.random.default_rng(seed))
    )
    above = weights @ np.asarray(numerators, dtype=np.float64)
    below = weights @ np.asarray(denominators, dtype=np.float64)
    ratios = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
    return Bootstrapped(float(ratios[0]), ratios[1:])


def distances(a: Floats, b: Floats) -> Floats:
    """Euclidean distances (N, M) of the rows of `a` (N, F) and `b` (M, F)."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1) - 2 * (a @ b.T)
    return np.sqrt(np.maximum(squares, 0, out=squares), out=squares)


def _drawn_weights(groups: NDArray[Any], draws: int, random: np.random.Generator) -> Floats:
    """How often each row stands in each of `draws` (draws, N), when whole groups are drawn with replacement.

    A draw of one group only says nothing about pairs, so it is drawn again. Raises ValueError where there is only one.
    """
    _, own = np.unique(groups, return_inverse=True)
    count = int(own.max()) + 1
    if count < 2:
        raise ValueError("one row says nothing about how rows differ: measure at least two")
    times = random.multinomial(count, np.full(count, 1 / count), size=draws)
    while (single := (times > 0).sum(axis=1) < 2).any():
        times[single] = random.multinomial(count, np.full(count, 1 / count), size=int(single.sum()))
    return times[:, own].astype(np.float64)


def _with_ones(weights: Floats) -> Floats:
    """The data as they are in the first row, before the draws."""
    return np.concatenate([np.ones((1, weights.shape[1])), weights])


def _weighted_mean(between: Floats, x_weights: Floats, y_weights: Floats) -> Floats:
    total = ((x_weights @ between) * y_weights).sum(axis=1)
    return total / (x_weights.sum(axis=1) * y_weights.sum(axis=1))


def _weighted_mean_between_groups(between: Floats, weights: Floats, groups: NDArray[Any]) -> Floats:
    apart = (groups[:, None] != groups).astype(np.float64)
    total = ((weights @ (between * apart)) * weights).sum(axis=1)
    pairs = ((weights @ apart) * weights).sum(axis=1)
    return total / pairs


def _groups(groups: ArrayLike | None, rows: int) -> NDArray[Any]:
    """The groups, or every row its own when there are none or only one."""
    if groups is None:
        return np.arange(rows)
    groups = np.asarray(groups)
    if groups.shape != (rows,):
        raise ValueError(f"groups have shape {groups.shape} for {rows} rows: give one a row")
    return groups if (groups != groups[0]).any() else np.arange(rows)


def _table(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or len(array) < 2:
        raise ValueError(f"{name} must be (N, F) with at least two rows, got shape {array.shape}")
    return array


__all__ = [
    "Bootstrapped",
    "bootstrap_mean",
    "bootstrap_ratio",
    "covered",
    "distances",
    "energy_distance",
    "energy_floor",
]
