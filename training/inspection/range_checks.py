"""What values the dims take: dims that do not move, that hardly move, that leap, and that rest at a limit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .findings import Finding, Severity, counted, listed
from .recording import DimStatistics, Recording
from .thresholds import InspectionThresholds


def check_ranges(recording: Recording, thresholds: InspectionThresholds) -> list[Finding]:
    """`no-motion`, `constant-dims`, `near-constant-dims`, `rarely-moving-dims`, `outliers`, `saturated-dims`.

    A dim gets the first of these that fits; actions and states are told apart.
    """
    findings = []
    for values, statistics in recording.labels():
        whole = statistics.max - statistics.min
        middle = statistics.q99 - statistics.q01
        constant = whole == 0
        small = ~constant & (whole < statistics.minimum_range)
        rare = ~constant & ~small & (middle < statistics.minimum_range)
        findings += _constant(statistics, constant)
        findings += _near_constant(statistics, small)
        findings += _rarely_moving(recording, values, statistics, rare, thresholds)
        usual = ~(constant | small | rare)
        findings += _outliers(recording, values, statistics, usual, thresholds)
        findings += _saturated(recording, values, statistics, usual, thresholds)
    return findings


def _constant(statistics: DimStatistics, constant: NDArray[np.bool_]) -> list[Finding]:
    dims = np.flatnonzero(constant)
    if not len(dims):
        return []
    names = [statistics.names[dim] for dim in dims]
    if constant.all():
        return [
            Finding(
                "no-motion",
                Severity.ERROR,
                f"No {statistics.label} dim ever changes: all {len(dims)} are constant.",
                f"Check that the {statistics.label} was recorded; there is nothing to learn from these numbers.",
                dims=names,
                numbers={"count": len(dims), "of": statistics.label},
            )
        ]
    shown = [f"{statistics.names[dim]} = {statistics.min[dim]:.4g}" for dim in dims]
    return [
        Finding(
            "constant-dims",
            Severity.WARNING,
            f"{counted(len(dims), f'{statistics.label} dim')} never changed: {listed(shown)}. Normalisation turns them "
            "into constants near 0.",
            "Harmless if that part of the robot was meant to rest; otherwise check the sensor or driver, or drop the "
            "dim.",
            dims=names,
            numbers={"count": len(dims), "of": statistics.label},
        )
    ]


def _near_constant(statistics: DimStatistics, small: NDArray[np.bool_]) -> list[Finding]:
    dims = np.flatnonzero(small)
    if not len(dims):
        return []
    shown = [f"{statistics.names[d]} (moves {statistics.max[d] - statistics.min[d]:.2g} in all)" for d in dims]
    least = float(statistics.minimum_range[dims].max())
    return [
        Finding(
            "near-constant-dims",
            Severity.WARNING,
            f"{counted(len(dims), f'{statistics.label} dim')} moved by less than the minimum range of {least:g}: "
            f"{listed(shown)}. Normalisation divides by the minimum range, so the model hardly sees them move.",
            "If that motion is real (a small unit, such as metres of a finger), lower the embodiment's minimum_range; "
            "if it is noise, leave it so.",
            dims=[statistics.names[dim] for dim in dims],
            numbers={"count": len(dims), "of": statistics.label, "minimum_range": least},
        )
    ]


def _rarely_moving(
    recording: Recording,
    values: NDArray[np.float32],
    statistics: DimStatistics,
    rare: NDArray[np.bool_],
    thresholds: InspectionThresholds,
) -> list[Finding]:
    dims = np.flatnonzero(rare)
    if not len(dims):
        return []
    away = np.abs(values[:, dims] - statistics.median[dims]) >= statistics.minimum_range[dims]
    extreme = float(statistics.extreme[dims].max())
    unbounded = (statistics.max - statistics.min)[dims] / np.maximum((statistics.q99 - statistics.q01)[dims], 1e-12)
    explodes = (
        f"values reach {extreme:.3g} after normalisation"
        if extreme > thresholds.normalized_limit
        else f"the minimum range keeps values within {extreme:.3g} after normalisation"
    )
    without = f"{unbounded.max():.0e}" if unbounded.max() < 1e9 else "infinity"
    worst = int(dims[statistics.extreme[dims].argmax()])
    return [
        Finding(
            "rarely-moving-dims",
            Severity.WARNING if extreme > thresholds.normalized_limit else Severity.INFO,
            f"{counted(len(dims), f'{statistics.label} dim')} stand still in 98 % of all frames and move in the rest "
            f"(q01 = q99, or nearly): {listed([statistics.names[dim] for dim in dims])}. {explodes.capitalize()}; a "
            f"plain quantile range would make it {without}.",
            "Record more episodes that move this dim, raise the embodiment's minimum_range for it (about "
            f"{statistics.max[worst] - statistics.min[worst]:.2g} for {statistics.names[worst]!r}), or use min_max "
            "normalisation.",
            episodes=recording.episodes_of(np.flatnonzero(away.any(1))),
            dims=[statistics.names[dim] for dim in dims],
            numbers={"count": len(dims), "of": statistics.label, "normalized_extreme": extreme},
        )
    ]


def _outliers(
    recording: Recording,
    values: NDArray[np.float32],
    statistics: DimStatistics,
    usual: NDArray[np.bool_],
    thresholds: InspectionThresholds,
) -> list[Finding]:
    beyond = thresholds.outlier_ranges * (statistics.q99 - statistics.q01)
    low, high = statistics.q01 - beyond, statistics.q99 + beyond
    dims = np.flatnonzero(usual & ((statistics.min < low) | (statistics.max > high)))
    if not len(dims):
        return []
    own = values[:, dims]
    outside = (own < low[dims]) | (own > high[dims])
    distance = np.abs(own - (low + high)[dims] / 2) / beyond[dims]
    step, column = (int(i) for i in np.unravel_index(distance.argmax(), distance.shape))
    dim, value = int(dims[column]), float(own[step, column])
    episode, within = recording.place(step)
    episodes = recording.episodes_of(np.flatnonzero(outside.any(1)))
    return [
        Finding(
            "outliers",
            Severity.WARNING,
            f"{counted(int(outside.sum()), 'value')} far outside the range of the middle 98 %, in {statistics.label} "
            f"dims {listed([statistics.names[d] for d in dims])}: worst {value:.4g} in {statistics.names[dim]!r} at "
            f"episode {episode} step {within} (98 % lie in [{statistics.q01[dim]:.4g}, {statistics.q99[dim]:.4g}]), "
            f"{statistics.extreme[dim]:.3g} after normalisation.",
            f"Look at {counted(len(episodes), 'episode')} ({listed(episodes)}): cut or repair glitches, or take the "
            "episodes out of the dataset.",
            episodes=episodes,
            dims=[statistics.names[d] for d in dims],
            numbers={
                "of": statistics.label,
                "count": int(outside.sum()),
                "worst_episode": episode,
                "worst_step": within,
                "worst_value": value,
                "normalized_extreme": float(statistics.extreme[dims].max()),
            },
        )
    ]


def _saturated(
    recording: Recording,
    values: NDArray[np.float32],
    statistics: DimStatistics,
    usual: NDArray[np.bool_],
    thresholds: InspectionThresholds,
) -> list[Finding]:
    """Grippers and switches are at their limits by nature, and left out."""
    at_low = (values == statistics.min.astype(np.float32)).mean(0)
    at_high = (values == statistics.max.astype(np.float32)).mean(0)
    share = np.maximum(at_low, at_high)
    clipped = usual & (share >= thresholds.saturated_share)
    clipped &= ~statistics.switches(values, thresholds.switch_share)
    if statistics.label == "action":
        clipped[recording.embodiment.gripper_dims] = False
    dims = np.flatnonzero(clipped)
    if not len(dims):
        return []
    shown = [f"{statistics.names[dim]} ({share[dim]:.0%})" for dim in dims]
    return [
        Finding(
            "saturated-dims",
            Severity.INFO,
            f"{counted(len(dims), f'{statistics.label} dim')} at rest exactly on the least or greatest value for "
            f"much of the time: {listed(shown)}.",
            "Fine for a part that is parked at its limit; otherwise a sensor or a controller clips there.",
            dims=[statistics.names[dim] for dim in dims],
            numbers={"count": len(dims), "of": statistics.label, "largest_share": float(share[dims].max())},
        )
    ]


__all__ = ["check_ranges"]
