"""Motion without a body: how single dims move in a while, comparable between robots of any dims, rates and units.

A profile is the course of one action dim over a window: the weights of its four slowest cosines (0.5 to 2 swings a
window; the mean is left out), divided by how far that dim usually moves (root mean square over all windows). Units,
offsets, ranges, rates and the number of dims drop out; what is left is how the thing moves: steadily or in bursts, back
and forth, with pauses. Our choice. It is taken of positions and not of the actions themselves, because absolute,
relative and delta actions of one motion have the same; and only of slow cosines, because how much samples tremble is a
matter of smoothness, and would otherwise hide what kind of motion it is where a window is short.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..configuration.action_transforms import LearnedLayout
from ..configuration.embodiment import Embodiment
from .body_windows import independent_groups
from .chunk_distances import Floats
from .data.trajectory import TrajectorySource

POINTS = 16  # times at which a course is read
COSINES = 4
WINDOWS = 512
PROFILES = 1024
RANGE_STEPS = 100_000  # from which the range of a recorded dim is taken


def chunk_duration(embodiment: Embodiment, chunk_size: int) -> float:
    """Seconds from the first action of a chunk to its last."""
    return (chunk_size - 1) / embodiment.control_rate


def sampled_profiles(
    chunks: Floats, embodiment: Embodiment, duration: float, seed: int = 0
) -> tuple[Floats, NDArray[np.int64]]:
    """Profiles (P, 4) of `chunks` (N, H, D), normalised and as learned, and the chunk (P,) that each is of.

    `duration` in seconds is not above that of a chunk. Raises ValueError when `embodiment` has no statistics.
    """
    statistics = embodiment.action_statistics
    if statistics is None:
        raise ValueError(f"embodiment {embodiment.name!r} has no statistics: its ranges of motion are not known")
    center, scale = statistics.affine(embodiment.action_normalization, embodiment.model_minimum_range("action"))
    places = _model_places(embodiment)
    ranges = {raw: statistics.q99[place] - statistics.q01[place] for raw, place in places.items()}
    dims = _moving_dims(embodiment, ranges)
    stepwise = [embodiment.learned_kinds[raw] == "delta" or embodiment.action_kinds[raw] != "absolute" for raw in dims]
    # steps are summed in the robot's units: a constant beside each would be a slope in the sum
    positions = _positions((chunks * scale + center)[:, :, [places[raw] for raw in dims]], stepwise)
    at = np.linspace(0, duration * embodiment.control_rate, POINTS)
    return _profiles([_read_at(chunk, at) for chunk in positions], np.arange(len(chunks)), seed)


def recorded_profiles(
    source: TrajectorySource, duration: float, seed: int = 0
) -> tuple[Floats, NDArray[np.int64], int]:
    """Profiles (P, 4) of windows of `duration` seconds of a dataset, their groups (P,), and the number of episodes.

    Raises ValueError when there are no two windows of that duration. See `independent_groups` for groups.
    """
    body, trajectories = source.embodiment, source.trajectories
    span = duration * body.control_rate
    steps = int(np.ceil(span)) + 1
    starts = np.array([max(len(trajectory) - steps + 1, 0) for trajectory in trajectories])
    if starts.sum() < 2:
        longest = max(len(trajectory) - 1 for trajectory in trajectories) / body.control_rate
        raise ValueError(f"{source.root}: no two windows of {duration:.2f} s, the longest episode has {longest:.2f} s")
    random = np.random.default_rng(seed)
    ends = np.cumsum(starts)
    chosen = random.choice(ends[-1], min(WINDOWS, int(ends[-1])), replace=False)
    episode = np.searchsorted(ends, chosen, side="right")
    first = chosen - (ends - starts)[episode]
    dims = _moving_dims(body, _recorded_ranges(source))
    stepwise = [body.action_kinds[dim] != "absolute" for dim in dims]
    courses = []
    for number, start in zip(episode, first, strict=True):
        values = trajectories[number].actions[start : start + steps, dims].astype(np.float64)
        courses.append(_read_at(_positions(values, stepwise), np.linspace(0, span, POINTS)))
    profiles, window = _profiles(courses, np.arange(len(courses)), seed)
    return profiles, independent_groups(episode, first)[window], len(np.unique(episode))


def _model_places(embodiment: Embodiment) -> dict[int, int]:
    """Raw index -> index in the model, of the action dims that are no part of a rotation."""
    layout = LearnedLayout(embodiment.action_dim, [group.action_dims for group in embodiment.rotations])
    return {int(raw): int(place) for raw, place in zip(layout.plain, layout.plain_places, strict=True)}


def _moving_dims(embodiment: Embodiment, ranges: dict[int, float]) -> list[int]:
    """The raw action dims that profiles are taken of.

    Rotations (whose numbers are no distances), grippers (switches) and dims that stay within their minimum range are
    left out; the last two not when nothing else remains.
    """
    least = embodiment.model_minimum_range("action")
    places = _model_places(embodiment)
    arm = [raw for raw in places if raw not in embodiment.gripper_dims]
    moving = [raw for raw in arm if ranges[raw] > least[places[raw]]]
    dims = moving or arm or list(places)
    if not dims:
        raise ValueError(f"embodiment {embodiment.name!r}: all its actions are rotations, which have no profile")
    return dims


def _recorded_ranges(source: TrajectorySource) -> dict[int, float]:
    """The distance between the 1 % and the 99 % quantile of every raw action dim."""
    stride = max(1, source.num_steps // RANGE_STEPS)
    steps = np.concatenate([trajectory.actions[::stride] for trajectory in source.trajectories])
    low, high = np.quantile(steps, [0.01, 0.99], axis=0)
    return dict(enumerate((high - low).tolist()))


def _positions(values: Floats, stepwise: ArrayLike) -> Floats:
    """Actions (..., H, D) as positions: what moves step by step is summed."""
    return np.where(stepwise, np.cumsum(values, axis=-2), values)


def _read_at(positions: Floats, at: Floats) -> Floats:
    """`positions` (H, D) at the steps `at` (16,), between them by straight lines: (16, D)."""
    return np.stack([np.interp(at, np.arange(len(positions)), column) for column in positions.T], axis=1)


def _profiles(courses: list[Floats], owners: NDArray[np.int64], seed: int) -> tuple[Floats, NDArray[np.int64]]:
    """Courses (16, D) of every owner as at most 1,024 profiles (P, 4), and the owner (P,) of each."""
    middle = (np.arange(POINTS) + 0.5) * np.pi / POINTS
    cosines = np.stack([np.cos(number * middle) for number in range(1, COSINES + 1)]) * np.sqrt(2 / POINTS)
    weights = np.einsum("kp,npd->ndk", cosines, np.stack(courses))  # (N, D, 4)
    usual = np.sqrt(np.square(weights).sum(axis=2).mean(axis=0))[:, None]
    weights = np.divide(weights, usual, out=np.zeros_like(weights), where=usual > 0)
    rows, owners = weights.reshape(-1, COSINES), np.repeat(owners, weights.shape[1])
    chosen = np.random.default_rng(seed).permutation(len(rows))[:PROFILES]
    return rows[chosen], owners[chosen]


__all__ = ["chunk_duration", "recorded_profiles", "sampled_profiles"]
