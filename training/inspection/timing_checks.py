"""Time: whether the clock ran evenly and at the declared rate, and whether episodes have room for a chunk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .findings import Finding, Severity, counted, listed
from .recording import Recording
from .thresholds import InspectionThresholds


@dataclass(frozen=True)
class Windows:
    """The windows that training will cut: one starts at every step and may run over its episode's end.

    Args:
        chunk_size: steps a window; seconds: what they last.
        count: windows, one a step.
        padded: windows that run over an end; padded_steps: share of all their steps that are masked padding.
    """

    chunk_size: int
    seconds: float
    count: int
    padded: int
    padded_steps: float


def count_windows(lengths: NDArray[np.int64], chunk_size: int, period: float) -> Windows:
    """Windows of `chunk_size` steps over episodes of `lengths` (E,) steps of `period` seconds."""
    count = int(lengths.sum())
    cut = np.minimum(lengths, chunk_size - 1)  # windows of an episode that run over its end
    missing = int((cut * chunk_size - cut * (cut + 1) // 2).sum())
    return Windows(chunk_size, chunk_size * period, count, int(cut.sum()), missing / (count * chunk_size))


def check_timestamps(recording: Recording, thresholds: InspectionThresholds) -> list[Finding]:
    """`timestamps-backwards`, `rate-mismatch`, `timestamp-gaps`, `irregular-timestamps`."""
    inside = recording.inside()
    if not inside.any():
        return []
    steps = np.flatnonzero(inside) + 1  # the later one of each pair
    elapsed = np.diff(recording.timestamps)[inside]
    period = recording.period
    findings = _backwards(recording, steps, elapsed)
    median = float(np.median(elapsed))
    if median > 0 and abs(median / period - 1) > thresholds.rate_tolerance:
        rate = recording.embodiment.control_rate
        findings.append(
            Finding(
                "rate-mismatch",
                Severity.ERROR,
                f"The timestamps say {1 / median:.4g} Hz (a step lasts {1000 * median:.4g} ms), the dataset declares "
                f"{rate:g} Hz.",
                "Correct fps in the metadata, or the timestamps: a policy would run at the wrong speed, and video "
                "frames would be taken at the wrong times.",
                numbers={"measured_rate": 1 / median, "declared_rate": rate},
            )
        )
        period = median
    gaps = elapsed > 1.5 * period
    if gaps.any():
        findings.append(_gap_finding(recording, steps[gaps], elapsed[gaps], period))
    uneven = (np.abs(elapsed - period) > thresholds.period_tolerance * period) & ~gaps & (elapsed > 0)
    if uneven.mean() > thresholds.irregular_share:
        episodes = recording.episodes_of(steps[uneven])
        findings.append(
            Finding(
                "irregular-timestamps",
                Severity.WARNING,
                f"{uneven.mean():.1%} of the time steps are off by more than {thresholds.period_tolerance:.0%} of "
                f"{1000 * period:.4g} ms (standard deviation {1000 * elapsed[~gaps].std():.3g} ms), in "
                f"{counted(len(episodes), 'episode')}: {listed(episodes)}.",
                "Record with a steady loop, or resample states and actions to an even rate before training.",
                episodes=episodes,
                numbers={"share": float(uneven.mean()), "standard_deviation_ms": float(1000 * elapsed[~gaps].std())},
            )
        )
    return findings


def _backwards(recording: Recording, steps: NDArray[np.int64], elapsed: NDArray[np.float64]) -> list[Finding]:
    back = steps[elapsed <= 0]
    if not len(back):
        return []
    episode, within = recording.place(int(back[0]))
    return [
        Finding(
            "timestamps-backwards",
            Severity.ERROR,
            f"Time stands still or runs backwards at {counted(len(back), 'step')}, first at episode {episode} step "
            f"{within}.",
            "Rewrite the timestamps as step / fps, or take these episodes out of the dataset.",
            episodes=recording.episodes_of(back),
            numbers={"count": len(back), "first_episode": episode, "first_step": within},
        )
    ]


def _gap_finding(
    recording: Recording, steps: NDArray[np.int64], elapsed: NDArray[np.float64], period: float
) -> Finding:
    worst = int(elapsed.argmax())
    episode, within = recording.place(int(steps[worst]))
    episodes = recording.episodes_of(steps)
    return Finding(
        "timestamp-gaps",
        Severity.WARNING,
        f"{counted(len(steps), 'gap')} in time (a step longer than {1500 * period:.3g} ms) in "
        f"{counted(len(episodes), 'episode')} ({listed(episodes)}): longest {elapsed[worst]:.3g} s at episode "
        f"{episode} step {within}.",
        "Split the episode there, or record it again: a chunk across a gap teaches a leap.",
        episodes=episodes,
        numbers={
            "count": len(steps),
            "longest_seconds": float(elapsed[worst]),
            "worst_episode": episode,
            "worst_step": within,
        },
    )


def check_lengths(recording: Recording, chunk_size: int, thresholds: InspectionThresholds) -> list[Finding]:
    """`short-episodes` (shorter than a chunk) and `odd-lengths` (far from the median)."""
    findings = []
    lengths = recording.lengths
    short = lengths < chunk_size
    if short.any():
        episodes = recording.named(short)
        findings.append(
            Finding(
                "short-episodes",
                Severity.WARNING,
                f"{counted(len(episodes), 'episode')} of {len(lengths)} are shorter than a chunk of {chunk_size} steps:"
                f" {listed(episodes)} (shortest {lengths.min()}).",
                f"Train with expert.chunk_size {max(1, int(np.quantile(lengths, 0.05)))} or less (in the recipe, under "
                "model:), or take them out of the dataset: every window of theirs is partly padding.",
                episodes=episodes,
                numbers={"count": len(episodes), "shortest": int(lengths.min()), "chunk_size": chunk_size},
            )
        )
    median = float(np.median(lengths))
    odd = ((lengths * thresholds.odd_length < median) | (lengths > thresholds.odd_length * median)) & ~short
    if odd.any():
        shown = [f"{recording.numbers[e]} ({lengths[e] * recording.period:.1f} s)" for e in np.flatnonzero(odd)]
        findings.append(
            Finding(
                "odd-lengths",
                Severity.INFO,
                f"{counted(int(odd.sum()), 'episode')} last more than {thresholds.odd_length:g} times shorter or "
                f"longer than the median of {median * recording.period:.1f} s: {listed(shown)}.",
                "Look whether they were broken off, or whether somebody forgot to stop the recording.",
                episodes=recording.named(odd),
                numbers={"count": int(odd.sum()), "median_steps": median},
            )
        )
    return findings


__all__ = ["Windows", "check_lengths", "check_timestamps", "count_windows"]
