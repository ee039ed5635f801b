"""A dataset's steps, end to end in flat arrays, and the statistics of their dims: what every check looks at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...configuration.embodiment import Embodiment, FeatureStatistics, NormalizationMode
from ..data.trajectory import Trajectory, TrajectorySource


@dataclass(eq=False)
class DimStatistics:
    """Statistics of the dims of the action or the state, over all steps; every array is (dim,), in raw units.

    `center` and `scale` are of the embodiment's normalisation of recorded numbers, raw -> (raw - center) / scale, with
    its mode and minimum range.
    """

    label: str
    names: list[str]
    mode: NormalizationMode
    minimum_range: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    min: NDArray[np.float64]
    q01: NDArray[np.float64]
    median: NDArray[np.float64]
    q99: NDArray[np.float64]
    max: NDArray[np.float64]
    center: NDArray[np.float64]
    scale: NDArray[np.float64]

    @classmethod
    def of(cls, values: NDArray[np.float32], embodiment: Embodiment, label: str) -> DimStatistics:
        """Of `values` (N, dim), the embodiment's `label`: `action` or `state`."""
        names: list[str] = getattr(embodiment, f"{label}_names")
        mode: NormalizationMode = getattr(embodiment, f"{label}_normalization")
        least = embodiment.minimum_range
        if label == "state":  # as the embodiment does it
            own = embodiment.state_minimum_range
            least = float(np.min(least)) if own is None else own
        minimum_range = np.broadcast_to(np.asarray(least, dtype=np.float64), (len(names),))
        if not names:
            nothing = np.zeros(0)
            return cls(label, names, mode, minimum_range, *[nothing] * 9)
        statistics = FeatureStatistics.from_values(values)
        center, scale = statistics.affine(mode, minimum_range)
        return cls(
            label=label,
            names=names,
            mode=mode,
            minimum_range=minimum_range,
            median=np.median(values, axis=0).astype(np.float64),
            center=center,
            scale=scale,
            **{key: np.asarray(getattr(statistics, key)) for key in ("mean", "std", "min", "q01", "q99", "max")},
        )

    @property
    def middle_range(self) -> NDArray[np.float64]:
        """q99 - q01; the whole range where the middle 98 % hardly move."""
        middle = self.q99 - self.q01
        return np.where(middle >= self.minimum_range, middle, self.max - self.min)

    @property
    def moves(self) -> NDArray[np.bool_]:
        """Which dims move by more than normalisation's minimum range."""
        return self.max - self.min >= self.minimum_range

    @property
    def extreme(self) -> NDArray[np.float64]:
        """The greatest magnitude that a value has after normalisation."""
        return np.maximum(np.abs(self.min - self.center), np.abs(self.max - self.center)) / self.scale

    def switches(self, values: NDArray[np.float32], share: float) -> NDArray[np.bool_]:
        """Which dims of `values` (N, dim) are switches: a `share` of them near one of two levels, as grippers are."""
        near = 0.05 * (self.q99 - self.q01)
        at_level = (values <= self.q01 + near) | (values >= self.q99 - near)
        switches: NDArray[np.bool_] = at_level.mean(0) >= share
        return switches

    def rows(self) -> list[dict[str, Any]]:
        """One dict a dim: name, the statistics, and the greatest normalised magnitude."""
        keys = ("min", "q01", "median", "q99", "max", "mean", "std")
        return [
            {"name": name, **{key: float(getattr(self, key)[dim]) for key in keys}, "extreme": float(self.extreme[dim])}
            for dim, name in enumerate(self.names)
        ]


class Recording:
    """All episodes of a source, end to end.

    Attributes:
        states (N, S), actions (N, D) raw float32; timestamps (N,) seconds; starts, lengths (E,) in steps; numbers (E,)
        the episodes' own indices in the dataset.
    """

    def __init__(self, source: TrajectorySource) -> None:
        self.embodiment = source.embodiment
        self.trajectories: list[Trajectory] = source.trajectories
        self.states = np.concatenate([trajectory.states for trajectory in self.trajectories])
        self.actions = np.concatenate([trajectory.actions for trajectory in self.trajectories])
        self.timestamps = np.concatenate([trajectory.timestamps for trajectory in self.trajectories])
        self.lengths = np.array([len(trajectory) for trajectory in self.trajectories])
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.numbers = np.array([trajectory.episode_index for trajectory in self.trajectories])

    @property
    def num_steps(self) -> int:
        return len(self.actions)

    @property
    def period(self) -> float:
        """Seconds a step, as the embodiment declares them."""
        return 1 / self.embodiment.control_rate

    @cached_property
    def owner(self) -> NDArray[np.int64]:
        """(N,) the position, in `numbers`, of the episode of every step."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @cached_property
    def action_statistics(self) -> DimStatistics:
        return DimStatistics.of(self.actions, self.embodiment, "action")

    @cached_property
    def state_statistics(self) -> DimStatistics:
        return DimStatistics.of(self.states, self.embodiment, "state")

    def labels(self) -> Iterator[tuple[NDArray[np.float32], DimStatistics]]:
        """The actions and, if there are any, the states, each (N, dim) with their statistics."""
        yield self.actions, self.action_statistics
        if self.states.shape[1]:
            yield self.states, self.state_statistics

    def episode_slices(self) -> Iterator[slice]:
        """The rows of every episode."""
        for start, length in zip(self.starts.tolist(), self.lengths.tolist(), strict=True):
            yield slice(start, start + length)

    def inside(self, lag: int = 1) -> NDArray[np.bool_]:
        """(N - lag,) whether a step and that `lag` steps later belong to one episode; `lag` is at least 1."""
        return self.owner[lag:] == self.owner[:-lag]

    def place(self, step: int) -> tuple[int, int]:
        """(episode number, step within it) of a flat step."""
        position = int(self.owner[step])
        return int(self.numbers[position]), int(step - self.starts[position])

    def episodes_of(self, steps: NDArray[np.int64]) -> list[int]:
        """The numbers of the episodes of flat steps, each once, in order."""
        return self.named(np.unique(self.owner[steps]))

    def named(self, positions: NDArray[Any] | Sequence[int]) -> list[int]:
        """Episode numbers at `positions`, indices or a mask."""
        return [int(number) for number in self.numbers[np.asarray(positions)]]

    def speed(self) -> NDArray[np.float64]:
        """(N,) how fast the fastest dim moves, in ranges a second; an episode's last step moves as the one before."""
        values, statistics = (
            (self.states, self.state_statistics) if self.states.shape[1] else (self.actions, self.action_statistics)
        )
        speed = np.zeros(self.num_steps)
        moving = statistics.moves
        if moving.any() and self.num_steps > 1:
            change = np.abs(np.diff(values[:, moving], axis=0)) / statistics.middle_range[moving]
            speed[:-1] = change.max(1) * self.inside() / self.period
            last = self.starts + self.lengths - 1
            speed[last] = np.where(self.lengths > 1, speed[last - 1], 0)
        return speed


__all__ = ["DimStatistics", "Recording"]
