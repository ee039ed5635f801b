"""Intervals agree with the tables of Newcombe (1998), and refuse counts that are none."""

from __future__ import annotations

import numpy as np
import pytest

from priorvla.hub_cards.intervals import difference_interval, wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_newcombes_single_proportion_table(successes, trials, low, high):
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((0, 10, 0, 10), -0.2775, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_difference_interval_equals_newcombes_method_10_table(counts, low, high):
    assert difference_interval(*counts) == pytest.approx((low, high), abs=5e-5)


def test_intervals_agree_with_scipy_where_it_is_installed():
    stats = pytest.importorskip("scipy.stats")
    for successes, trials, confidence in [(0, 5, 0.95), (5, 5, 0.9), (37, 100, 0.99), (1, 1, 0.5)]:
        expected = stats.binomtest(successes, trials).proportion_ci(confidence, method="wilson")
        assert wilson_interval(successes, trials, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_success_and_nothing_but_success_reach_exactly_to_the_ends():
    assert wilson_interval(0, 7)[0] == 0.0
    assert wilson_interval(7, 7)[1] == 1.0


def test_swapping_the_arms_mirrors_the_difference():
    low, high = difference_interval(9, 20, 4, 25)
    assert difference_interval(4, 25, 9, 20) == pytest.approx((-high, -low))


def test_more_confidence_and_fewer_trials_widen_an_interval():
    def width(interval):
        return interval[1] - interval[0]

    assert width(wilson_interval(5, 10, 0.99)) > width(wilson_interval(5, 10, 0.9))
    assert width(wilson_interval(5, 10)) > width(wilson_interval(50, 100))


def test_numpy_integers_are_counts():
    assert wilson_interval(np.int64(3), np.int32(10)) == wilson_interval(3, 10)


@pytest.mark.parametrize(
    ("successes", "trials", "message"), [(1, 0, "at least one trial"), (-1, 5, "got -1"), (6, 5, "got 6")]
)
def test_impossible_counts_are_refused(successes, trials, message):
    with pytest.raises(ValueError, match=message):
        wilson_interval(successes, trials)


def test_a_rate_in_place_of_a_count_is_refused():
    with pytest.raises(TypeError, match="pass integers, not rates"):
        wilson_interval(0.5, 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95])
def test_a_confidence_outside_0_and_1_is_refused(confidence):
    with pytest.raises(ValueError, match="confidence"):
        wilson_interval(1, 2, confidence)
