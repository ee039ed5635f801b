"""How the robot moves: steps at which it does not, and steps at which no robot could."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .findings import Finding, Severity, counted, listed
from .recording import DimStatistics, Recording
from .thresholds import InspectionThresholds

TURNS = (2 * np.pi, 360.0)  # what an angle jumps by when it wraps around


def idle_steps(recording: Recording, thresholds: InspectionThresholds) -> NDArray[np.int64]:
    """(E, 2) idle steps at the start and at the end of every episode: neither action nor state moves there.

    A dim stands still while it stays within `still_range` of its range of where the episode starts (or ends), so that
    encoder noise is no motion and a slow start is one; a recorded difference stands still near zero. An episode that
    never moves is idle from its start to its end. Dims that move by less than the minimum range in the whole dataset do
    not count.
    """
    idle = np.zeros((len(recording.lengths), 2), dtype=np.int64)
    for position, steps in enumerate(recording.episode_slices()):
        length = steps.stop - steps.start
        start = end = length
        for values, statistics in recording.labels():
            kept = statistics.moves
            own = values[steps][:, kept]
            tolerance = thresholds.still_range * statistics.middle_range[kept]
            differences = _differences(recording, statistics)[kept]
            start = min(start, _still_steps(own, tolerance, differences))
            end = min(end, _still_steps(own[::-1], tolerance, differences))
        # The step before the first that moved is the one whose action moved it.
        idle[position] = (length, 0) if start == length else (start - 1, min(end - 1, length - start + 1))
    return idle


def _still_steps(values: NDArray[np.float32], tolerance: NDArray[np.float64], differences: NDArray[np.bool_]) -> int:
    """How many of the first steps of `values` (T, dim) stand still; T when all do."""
    away = np.abs(values - np.where(differences, 0, values[0])) > tolerance
    moved = away.any(1)
    return max(1, int(moved.argmax())) if moved.any() else len(values)


def _differences(recording: Recording, statistics: DimStatistics) -> NDArray[np.bool_]:
    """(dim,) which dims are recorded as differences: zero is where those stand still."""
    if statistics.label == "state":
        return np.zeros(len(statistics.names), dtype=bool)
    return np.array([kind != "absolute" for kind in recording.embodiment.action_kinds])


def check_idle(recording: Recording, idle: NDArray[np.int64], thresholds: InspectionThresholds) -> list[Finding]:
    """`idle-frames` and `motionless-episodes`, from `idle_steps`."""
    findings = []
    motionless = idle[:, 0] == recording.lengths
    if motionless.any():
        episodes = recording.named(motionless)
        findings.append(
            Finding(
                "motionless-episodes",
                Severity.WARNING,
                f"{counted(len(episodes), 'episode')} of {len(motionless)} never moved: {listed(episodes)}.",
                "Take them out of the dataset, or check that state and action were recorded and not frozen.",
                episodes=episodes,
                numbers={"count": len(episodes)},
            )
        )
    moving = idle * ~motionless[:, None]
    leading, trailing = moving.sum(0).tolist()
    share = (leading + trailing) / recording.num_steps
    if share > thresholds.idle_share:
        longest = np.argsort(-moving.sum(1), kind="stable")
        longest = longest[moving.sum(1)[longest] > thresholds.idle_share * recording.lengths[longest]]
        seconds = (leading + trailing) * recording.period
        shown = [f"{recording.numbers[e]} ({moving[e].sum() * recording.period:.1f} s)" for e in longest]
        findings.append(
            Finding(
                "idle-frames",
                Severity.WARNING,
                f"{share:.0%} of all frames are idle: {leading:,} before the motion starts and {trailing:,} after it "
                f"ended, {seconds:.0f} s in all; most in episodes {listed(shown)}.",
                f"Cut the idle frames ({seconds:.0f} s) from the episodes' ends before training: a policy trained on "
                "them learns to wait.",
                episodes=sorted(recording.named(longest)),
                numbers={
                    "leading_frames": leading,
                    "trailing_frames": trailing,
                    "share": share,
                    "seconds": seconds,
                },
            )
        )
    return findings


def check_jumps(recording: Recording, thresholds: InspectionThresholds) -> list[Finding]:
    """`jumps`: single steps that cross much of a dim's range, many times what that dim's other steps cross, or a turn.

    Looked for in states and absolute actions; switches, grippers, and dims that move in steps are left out.
    """
    findings = []
    for values, statistics in recording.labels():
        candidates = statistics.moves & ~_differences(recording, statistics)
        candidates &= ~statistics.switches(values, thresholds.switch_share)
        if statistics.label == "action":
            candidates[recording.embodiment.gripper_dims] = False
        if recording.num_steps < 2 or not candidates.any():
            continue
        dims = np.flatnonzero(candidates)
        change = np.abs(np.diff(values[:, dims], axis=0)) * recording.inside()[:, None]
        usual = np.quantile(change, 0.99, axis=0)
        least = np.maximum(thresholds.jump_range * statistics.middle_range[dims], thresholds.jump_factor * usual)
        jumps = (change > least) & (usual > 0)
        often = thresholds.jump_factor * np.median(change, axis=0)  # a wheel wraps in more than 1 % of its steps
        for turn in TURNS:
            jumps |= (np.abs(change - turn) < 0.05 * turn) & (change > often)
        if jumps.any():
            findings.append(_jump_finding(recording, statistics, dims, change, jumps))
    return findings


def _jump_finding(
    recording: Recording,
    statistics: DimStatistics,
    dims: NDArray[np.int64],
    change: NDArray[np.floating],
    jumps: NDArray[np.bool_],
) -> Finding:
    ranges = np.where(jumps, change / statistics.middle_range[dims], 0)
    step, column = (int(i) for i in np.unravel_index(ranges.argmax(), ranges.shape))
    size = float(change[step, column])
    episode, within = recording.place(step + 1)
    names = [statistics.names[dim] for dim in dims[jumps.any(0)]]
    wraps = any(abs(size - turn) < 0.05 * turn for turn in TURNS)
    return Finding(
        "jumps",
        Severity.WARNING,
        f"{counted(int(jumps.sum()), 'jump')} in {statistics.label} dims {listed(names)} beyond all other steps: "
        f"largest {size:.4g} in {statistics.names[dims[column]]!r} at episode {episode} step {within}.",
        "The size is a full turn: unwrap that angle before training."
        if wraps
        else "Look at these steps: lost samples, a reset inside an episode, an angle that wraps; cut or repair them.",
        episodes=recording.episodes_of(np.flatnonzero(jumps.any(1)) + 1),
        dims=names,
        numbers={"count": int(jumps.sum()), "worst_episode": episode, "worst_step": within, "worst_size": size},
    )


__all__ = ["check_idle", "check_jumps", "idle_steps"]
