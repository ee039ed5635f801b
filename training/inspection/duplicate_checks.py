"""Episodes that are in the dataset more than once, to the bit or nearly."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from .findings import Finding, Severity, counted, listed
from .recording import Recording
from .thresholds import InspectionThresholds

POINTS = 32  # an episode is compared at so many points of its time
MOST_EPISODES = 2000  # compared pairwise: 4 million distances, about a second
REMEDY = "Remove all but one of each group: twins weigh double, and one that is held out is still known from training."


def check_duplicates(recording: Recording, thresholds: InspectionThresholds) -> list[Finding]:
    """`duplicate-episodes` (the same states and actions, to the bit) and `near-duplicate-episodes`.

    Nearly the same are two episodes whose motion, at 32 points of their time, differs by less than
    `duplicate_distance`. Of more than 2,000 episodes evenly many are compared in that way; episodes that never move are
    left out.
    """
    groups: dict[str, list[int]] = {}
    for position, trajectory in enumerate(recording.trajectories):
        digest = hashlib.sha256(trajectory.actions.tobytes() + b"\0" + trajectory.states.tobytes()).hexdigest()
        groups.setdefault(digest, []).append(position)
    exact = [recording.named(members) for members in groups.values() if len(members) > 1]
    unique = np.array([members[0] for members in groups.values()])
    near = [recording.named(members) for members in _near_groups(recording, unique, thresholds.duplicate_distance)]
    findings = []
    for code, what, found in (
        ("duplicate-episodes", "the same, to the bit", exact),
        ("near-duplicate-episodes", f"nearly the same motion (within {thresholds.duplicate_distance:.0%})", near),
    ):
        if found:
            count = sum(len(group) for group in found)
            shown = [" = ".join(map(str, group[:4])) + (" = …" if len(group) > 4 else "") for group in found]
            findings.append(
                Finding(
                    code,
                    Severity.WARNING,
                    f"{counted(count, 'episode')} in {counted(len(found), 'group')} are {what}: {listed(shown)}.",
                    REMEDY,
                    episodes=sorted(episode for group in found for episode in group),
                    numbers={"count": count, "groups": len(found)},
                )
            )
    return findings


def _near_groups(recording: Recording, positions: NDArray[np.int64], distance: float) -> list[list[int]]:
    """Groups of `positions` (E,) that are connected by distances below `distance`."""
    if len(positions) > MOST_EPISODES:
        positions = positions[np.linspace(0, len(positions) - 1, MOST_EPISODES).astype(np.int64)]
    curves = _curves(recording, positions)
    moving = np.ptp(curves, axis=1).max(1, initial=0) > 2 * distance
    positions, curves = positions[moving], curves[moving]
    flat = curves.reshape(len(curves), POINTS * curves.shape[2])
    if len(flat) < 2:
        return []
    flat = flat - flat.mean(0)  # distances stay, rounding shrinks
    squares = (flat**2).sum(1)
    apart = (squares[:, None] + squares - 2 * flat @ flat.T) / flat.shape[1]
    pairs = np.argwhere(np.triu(apart < distance**2, 1))
    group_of = np.arange(len(flat))
    for first, second in pairs.tolist():
        group_of[group_of == group_of[second]] = group_of[first]
    members = [np.flatnonzero(group_of == group) for group in np.unique(group_of)]
    return [positions[indices].tolist() for indices in members if len(indices) > 1]


def _curves(recording: Recording, positions: NDArray[np.int64]) -> NDArray[np.float64]:
    """(E, 32, dims) the moving dims of states and actions in ranges, at evenly spaced times of every episode."""
    lengths = recording.lengths[positions]
    times = np.linspace(0, 1, POINTS) * (lengths[:, None] - 1)
    steps = recording.starts[positions][:, None] + np.rint(times).astype(np.int64)
    parts = []
    for values, statistics in recording.labels():
        kept = statistics.moves
        parts.append(values[:, kept][steps] / statistics.middle_range[kept])
    return np.concatenate(parts, axis=2)


__all__ = ["check_duplicates"]
