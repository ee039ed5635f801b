"""Confidence intervals for success rates: what a count of successes in a count of trials says, and what it does not."""

from __future__ import annotations

from math import sqrt
from operator import index
from statistics import NormalDist


def wilson_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval `(lo, hi)` of a success rate, both in [0, 1], without continuity correction.

    It stays inside [0, 1] and is not empty at 0 or all successes, unlike the textbook one (Newcombe 1998, "Two-sided
    confidence intervals for the single proportion", method 3).

    Raises:
        ValueError: unless 0 <= successes <= trials, trials > 0 and 0 < confidence < 1.
        TypeError: when a count is not an integer.
    """
    successes, trials = _checked_counts(successes, trials)
    z = _normal_quantile(confidence)
    rate = successes / trials
    centre = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half_width = z * sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    # Exact at the ends, where rounding would leave 1e-17 or 1 - 1e-16.
    low = 0.0 if successes == 0 else max(0.0, centre - half_width)
    high = 1.0 if successes == trials else min(1.0, centre + half_width)
    return low, high


def difference_interval(
    successes_a: int, trials_a: int, successes_b: int, trials_b: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Newcombe's hybrid score interval `(lo, hi)` of `rate a - rate b`, both in [-1, 1].

    For *independent* proportions (Newcombe 1998, "Interval estimation for the difference between independent
    proportions", method 10). Two policies evaluated from the same starts are paired, and their outcomes usually agree
    more often than chance would have it; this interval does not use that, so there it is conservative: wider than it
    need be. When it spans zero, the data do not tell the two apart.

    Raises: as `wilson_interval`.
    """
    low_a, high_a = wilson_interval(successes_a, trials_a, confidence)
    low_b, high_b = wilson_interval(successes_b, trials_b, confidence)
    rate_a, rate_b = successes_a / trials_a, successes_b / trials_b
    low = rate_a - rate_b - sqrt((rate_a - low_a) ** 2 + (high_b - rate_b) ** 2)
    high = rate_a - rate_b + sqrt((high_a - rate_a) ** 2 + (rate_b - low_b) ** 2)
    return max(-1.0, low), min(1.0, high)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1 (for example 0.95), got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _checked_counts(successes: int, trials: int) -> tuple[int, int]:
    try:
        successes, trials = index(successes), index(trials)
    except TypeError:
        raise TypeError(
            f"successes and trials are counts, got {successes!r} of {trials!r}: pass integers, not rates"
        ) from None
    if trials <= 0:
        raise ValueError(f"an interval needs at least one trial, got {trials}")
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie between 0 and the {trials} trials, got {successes}")
    return successes, trials


__all__ = ["difference_interval", "wilson_interval"]
