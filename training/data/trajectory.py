"""Trajectories: what every reader makes and every window is cut from.

One trajectory is one recorded episode in the robot's raw units. Frames stay where they are on disk behind a
`FrameReader`, so that a thousand episodes of motion cost a few megabytes and no image is opened unless it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...configuration.embodiment import Embodiment


class FrameReader(Protocol):
    """Reads camera frames of one episode when they are asked for."""

    cameras: list[str]

    def read(self, camera: str, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Frames (n, h, w, 3), RGB, of the steps `indices` (0 = first step of the episode), in that order."""
        ...


@dataclass(eq=False)
class Trajectory:
    """One episode of T steps.

    Args:
        states: (T, S) raw proprioceptive states; S may be 0.
        actions: (T, D) raw actions, `actions[t]` taken after `states[t]` was observed.
        task: the instruction, a sentence.
        episode_index: the episode's number within its dataset.
        timestamps: (T,) seconds since the episode's start.
        frames: reader of its camera frames, or None when frames were not asked for.
        source: the file that the episode came from; errors name it.

    Raises:
        ValueError: when there are no steps, lengths differ, or a value is not finite; names file, key, step and value.
    """

    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    task: str
    episode_index: int
    timestamps: NDArray[np.float64]
    frames: FrameReader | None
    source: str

    def __post_init__(self) -> None:
        self.states = np.asarray(self.states, dtype=np.float32)
        self.actions = np.asarray(self.actions, dtype=np.float32)
        self.timestamps = np.asarray(self.timestamps, dtype=np.float64)
        where = f"{self.source}: episode {self.episode_index}"
        columns = (("action", self.actions, 2), ("state", self.states, 2), ("timestamp", self.timestamps, 1))
        for key, values, axes in columns:
            if values.ndim != axes:
                raise ValueError(f"{where}: {key} must have {axes} axes (steps first), got shape {values.shape}")
        if len(self) == 0:
            raise ValueError(f"{where} has no steps (length 0): leave it out, or record it again")
        for key, count in (("state", len(self.states)), ("timestamp", len(self.timestamps))):
            if count != len(self):
                raise ValueError(f"{where} has {len(self)} actions but {count} {key}s: they must be equally many")
        for key, values, _ in columns:
            require_finite(values, f"{where}: {key}")

    def __len__(self) -> int:
        return len(self.actions)


@dataclass(eq=False)
class TrajectorySource:
    """One dataset: its trajectories, the body that made them, and a fingerprint of its content.

    Args:
        root: the dataset's folder.
        fingerprint: hexadecimal sha256 of the dataset's content (not of where it lies); keys feature caches.
        embodiment: the body of all its trajectories.
        trajectories: the episodes that were asked for, in the order in which they were asked for.
    """

    root: Path
    fingerprint: str
    embodiment: Embodiment
    trajectories: list[Trajectory]

    def __len__(self) -> int:
        """The number of trajectories."""
        return len(self.trajectories)

    @property
    def num_steps(self) -> int:
        return sum(len(trajectory) for trajectory in self.trajectories)


def require_finite(values: NDArray[Any], what: str, names: Sequence[str] | None = None) -> None:
    """Raises ValueError naming the first step, and the dim (by `names` if given), of `values` (T, ...) not finite."""
    finite = np.isfinite(values)
    if finite.all():
        return
    index = tuple(int(i) for i in np.argwhere(~finite)[0])
    dim = f", dim {names[index[1]] if names else index[1]!r}" if len(index) > 1 else ""
    raise ValueError(f"{what} is {values[index]} at step {index[0]}{dim}: values must be finite")


__all__ = ["FrameReader", "Trajectory", "TrajectorySource", "require_finite"]
