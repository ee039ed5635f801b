"""Statistics in one pass over blocks: exact moments and extremes, quantiles within the stated rank, mergeable."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from priorvla.configuration.feature_statistics import QUANTILES, FeatureStatistics, StatisticsAccumulator

HARD = {
    "normal": lambda random, count: random.normal(size=count),
    "heavy tails": lambda random, count: random.standard_cauchy(count),
    "constant": lambda random, count: np.full(count, 0.123),
    "gripper": lambda random, count: (random.random(count) < 0.3).astype(float),
    "far from zero": lambda random, count: 1e6 + 1e-2 * random.normal(size=count),
    "drift": lambda random, count: np.linspace(-1, 1, count) ** 3,
}


def columns(count: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.stack([draw(random, count) for draw in HARD.values()], axis=1)


def accumulated(values: np.ndarray, block: int, **arguments: int) -> FeatureStatistics:
    accumulator = StatisticsAccumulator(values.shape[1], **arguments)
    for start in range(0, len(values), block):
        accumulator.update(values[start : start + block])
    return accumulator.result()


def ranks(values: np.ndarray, quantile: float) -> tuple[float, float]:
    """The share of `values` below `quantile`, and at or below it."""
    return float((values < quantile).mean()), float((values <= quantile).mean())


@pytest.mark.parametrize("block", [1, 7, 1000, 5000])
def test_blocks_of_any_size_give_the_statistics_of_the_whole(block: int) -> None:
    values = columns(5000)
    whole, pieces = FeatureStatistics.from_values(values), accumulated(values, block)
    for name in ("mean", "std", "min", "max", *QUANTILES):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), rtol=1e-9, atol=1e-9, err_msg=name)
    assert pieces.count == 5000


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_few_values_are_exact(count: int) -> None:
    values = columns(count)
    assert accumulated(values, 1).q01 == pytest.approx(FeatureStatistics.from_values(values).q01)


def test_deviations_of_numbers_far_from_zero_do_not_cancel() -> None:
    random = np.random.default_rng(1)
    values = 1e8 + random.normal(size=(200_000, 1))
    assert accumulated(values, 1000).std[0] == pytest.approx(values.std(), rel=1e-6)


@pytest.mark.parametrize("kind", HARD)
def test_quantiles_of_five_million_values_have_the_stated_rank(kind: str) -> None:
    values = HARD[kind](np.random.default_rng(2), 5_000_000)[:, None].astype(np.float32)
    statistics = accumulated(values, 250_000)
    exact = values.astype(np.float64)
    np.testing.assert_allclose(statistics.mean, exact.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(statistics.std, exact.std(0), rtol=1e-7, atol=1e-9)
    assert (statistics.min, statistics.max) == ([exact.min()], [exact.max()])
    for name, q in QUANTILES.items():
        below, upto = ranks(exact[:, 0], getattr(statistics, name)[0])
        allowed = 4 * np.sqrt(q * (1 - q) / 2**17)
        assert below - allowed <= q <= upto + allowed, (name, below, upto)


def test_accumulators_of_many_processes_merge_into_one_of_all() -> None:
    values = columns(60_000)
    parts = []
    for worker in range(6):  # one of them sees nothing, one a single row
        parts.append(StatisticsAccumulator(values.shape[1], sample_size=5000, seed=worker))
        rows = {0: values[:0], 1: values[:1]}.get(worker, values[1:][worker - 2 :: 4])
        parts[-1].update(rows)
    merged, *others = parts
    for other in others:
        merged.merge(other)
    result, whole = merged.result(), FeatureStatistics.from_values(values)
    assert result.count == 60_000 and result.min == whole.min and result.max == whole.max
    np.testing.assert_allclose(result.mean, whole.mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(result.std, whole.std, rtol=1e-6, atol=1e-9)
    for name, q in QUANTILES.items():
        for dim, kind in enumerate(HARD):
            below, upto = ranks(values[:, dim], getattr(result, name)[dim])
            allowed = 4 * np.sqrt(q * (1 - q) / 5000)
            assert below - allowed <= q <= upto + allowed, (kind, name, below, upto)


def test_the_sample_stays_within_its_size_and_every_row_is_as_likely_in_it() -> None:
    accumulator = StatisticsAccumulator(1, sample_size=2000)
    for start in range(0, 400_000, 1000):
        accumulator.update(np.arange(start, start + 1000)[:, None])
        assert sum(map(len, accumulator._rows)) < 2 * 2000 + 1000
    accumulator.result()
    kept = np.concatenate(accumulator._rows)[:, 0]
    assert len(kept) == 2000 == len(np.unique(kept))
    counts = np.histogram(kept, 10, (0, 400_000))[0]
    assert counts.min() > 140 and counts.max() < 260


def test_the_same_blocks_give_the_same_statistics_in_every_process() -> None:
    values = columns(10_000)
    assert accumulated(values, 500, sample_size=1000) == accumulated(values, 500, sample_size=1000)


def test_windows_are_taken_as_their_steps() -> None:
    values = columns(120)
    accumulator = StatisticsAccumulator(values.shape[1])
    accumulator.update(values.reshape(10, 12, -1))
    assert accumulator.result().count == 120


def refuse(action: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        action()


def test_what_has_no_statistics_is_refused() -> None:
    accumulator = StatisticsAccumulator(2)
    refuse(accumulator.result, "no statistics of no values")
    refuse(lambda: accumulator.update(np.zeros((4, 3))), r"of 2 dims, got a block of shape \(4, 3\)")
    refuse(lambda: accumulator.update(np.array([[0.0, np.inf]])), r"inf at index \(0, 1\) \(dim 1\)")
    refuse(lambda: accumulator.merge(StatisticsAccumulator(3)), "of 3 dims cannot be merged into those of 2")
    refuse(lambda: StatisticsAccumulator(0), "dim=0 must be at least 1")
    refuse(lambda: StatisticsAccumulator(2, sample_size=10), "sample_size=10 at least 1000")
