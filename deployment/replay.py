"""Open-loop replay: at every few steps of a recorded episode a policy says what it would do, beside what was done.

It is the look at a policy that needs neither robot nor simulator. It says whether the policy reads its observations as
they were recorded (units, dims, cameras, rate); it does not say whether it succeeds, for no error feeds on another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..configuration.embodiment import Embodiment
from ..training.body_windows import rotation_error
from ..training.data.trajectory import Trajectory, TrajectorySource
from .policy import Observation

BATCH = 16  # observations that a policy is asked about at once; their pictures are all that is held in memory

Floats = NDArray[np.float64]


class ChunkPolicy(Protocol):
    """What a replay needs of a policy: chunks (N, H, D) in the robot's units for N observations."""

    embodiment: Embodiment
    execute_steps: int

    def new_session(self, seed: int) -> Any: ...

    def remember(self, session: Any, observation: Observation, action: NDArray[np.float32]) -> None: ...

    def predict(self, sessions: Sequence[Any], observations: Sequence[Observation]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class ReplayedEpisode:
    """`recorded` (T, D) actions of an episode, and the chunks `predicted` (N, H, D) at its steps `starts` (N,)."""

    episode_index: int
    task: str
    recorded: NDArray[np.float32]
    starts: NDArray[np.int64]
    predicted: NDArray[np.float32]


@dataclass(frozen=True)
class ReplayErrors:
    """Mean absolute errors (H, D) by step in the chunk and dim, in the robot's units, over all chunks.

    Args:
        policy: of the policy.
        mean_action: of the mean action, whatever is seen.
        last_action: of going on with the action before the chunk; the mean action where the episode begins.
        counts: (H,) recorded steps that these are means over: fewer for late ones, which lie behind an episode's end.
    """

    policy: Floats
    mean_action: Floats
    last_action: Floats
    counts: NDArray[np.int64]

    def by_dim(self, errors: Floats, steps: int | None = None) -> Floats:
        """The mean (D,) of one of the errors over the recorded steps, of a chunk's first `steps` or all."""
        weights = self.counts[:steps]
        return np.asarray((errors[:steps] * weights[:, None]).sum(0) / weights.sum())

    def relative(self, baseline: Floats) -> Floats:
        """The policy's error by step in the chunk (H,), over `baseline`'s, mean over dims; 1 is no better.

        Dims in which that misses nothing are left out, and it is NaN where there is no other.
        """
        return np.array([relative_error(own, other) for own, other in zip(self.policy, baseline, strict=True)])


def relative_error(errors: ArrayLike, baseline: ArrayLike) -> float:
    """`errors` (D,) over `baseline`, mean over the dims in which that misses anything; NaN where there is none."""
    own, other = np.asarray(errors, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    moving = other > 1e-9
    return float(np.mean(own[moving] / other[moving])) if moving.any() else float("nan")


def replay_episode(
    policy: ChunkPolicy, trajectory: Trajectory, seed: int = 0, picture_interval: int = 1
) -> ReplayedEpisode:
    """Asks `policy` for a chunk at every `execute_steps`-th step of `trajectory`, which has frames.

    Where pictures are new at every `picture_interval`-th step only, at the next such step instead.
    What a policy with a memory remembers is what was recorded. The noise of a chunk depends on `seed` and its step.
    """
    between = -(-policy.execute_steps // picture_interval) * picture_interval
    starts = np.arange(0, len(trajectory), between)
    cameras = policy.embodiment.cameras
    chunks = []
    for first in range(0, len(starts), BATCH):
        steps = starts[first : first + BATCH].tolist()
        frames = trajectory.frames
        images = {} if frames is None else {camera: frames.read(camera, steps) for camera in cameras}
        observations = [
            {
                "state": trajectory.states[step],
                "images": {camera: own[row] for camera, own in images.items()},
                "instruction": trajectory.task,
            }
            for row, step in enumerate(steps)
        ]
        chunks.append(policy.predict([_session_at(policy, trajectory, step, seed) for step in steps], observations))
    predicted = np.concatenate(chunks)
    return ReplayedEpisode(trajectory.episode_index, trajectory.task, trajectory.actions, starts, predicted)


def _session_at(policy: ChunkPolicy, trajectory: Trajectory, step: int, seed: int) -> Any:
    session = policy.new_session(seed * 100_003 + step)
    for past in range(step):
        policy.remember(session, {"state": trajectory.states[past]}, trajectory.actions[past])
    return session


def replay_errors(episodes: Sequence[ReplayedEpisode], body: Embodiment, mean_action: ArrayLike) -> ReplayErrors:
    """How far the chunks of `episodes` lie from what was recorded, and what two ways of not looking would miss.

    Of the numbers that say one rotation those count that lie nearer. Steps behind an episode's end count nowhere.
    """
    horizon, dims = episodes[0].predicted.shape[1:]
    mean = np.asarray(mean_action, dtype=np.float64)
    totals, counts = np.zeros((3, horizon, dims)), np.zeros(horizon, np.int64)
    for episode in episodes:
        recorded = episode.recorded.astype(np.float64)
        for start, chunk in zip(episode.starts.tolist(), episode.predicted.astype(np.float64), strict=True):
            wanted = recorded[start : start + horizon]
            last = recorded[start - 1] if start else mean
            for place, answer in enumerate((chunk[: len(wanted)], mean, last)):
                totals[place, : len(wanted)] += _missed(body, np.broadcast_to(answer, wanted.shape), wanted)
            counts[: len(wanted)] += 1
    reached = counts > 0
    policy, mean_errors, last_errors = totals[:, reached] / counts[reached][:, None]
    return ReplayErrors(policy, mean_errors, last_errors, counts[reached])


def _missed(body: Embodiment, answer: Floats, recorded: Floats) -> Floats:
    error = np.abs(answer - recorded)
    for group in body.rotations:
        dims = group.action_dims
        error[..., dims] = rotation_error(answer[..., dims], recorded[..., dims], group.representation)
    return error


def require_replayable(body: Embodiment, source: TrajectorySource, *, named: bool = False) -> None:
    """Raises ValueError unless `source` has the robot `body`, and the cameras that it is to see with.

    `named`: somebody said that it is this robot, under another name.
    """
    own = source.embodiment
    if not named and own.name != body.name:
        raise ValueError(
            f"{source.root.name} is of {own.name!r}, the checkpoint drives {body.name!r}: pass --embodiment with the "
            "checkpoint's name for this robot"
        )
    for part in ("action", "state"):
        ours, theirs = (getattr(entry, f"{part}_names") for entry in (body, own))
        if len(ours) != len(theirs):
            raise ValueError(
                f"{source.root.name} has {len(theirs)} {part} dims ({', '.join(theirs)}), {body.name!r} of the "
                f"checkpoint {len(ours)} ({', '.join(ours)}): it is another robot"
            )
    for trajectory in source.trajectories:
        there = [] if trajectory.frames is None else trajectory.frames.cameras
        if missing := [camera for camera in body.cameras if camera not in there]:
            raise ValueError(
                f"{source.root.name}: episode {trajectory.episode_index} has no camera {missing[0]!r}, with which the "
                f"checkpoint sees; it has {', '.join(there) or 'none'}"
            )


__all__ = [
    "ChunkPolicy",
    "ReplayErrors",
    "ReplayedEpisode",
    "relative_error",
    "replay_episode",
    "replay_errors",
    "require_replayable",
]
