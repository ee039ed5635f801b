"""The bodies of a list of datasets: that their descriptions agree, and the statistics of all their steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...configuration.compatibility import BODY_KEYS, first_difference, require_compatible
from ...configuration.embodiment import Embodiment
from ...configuration.feature_statistics import StatisticsAccumulator
from .trajectory import TrajectorySource
from .trajectory_store import TrajectoryStore, held_out

# What datasets of one body must agree on beside its numbers, so that they can be learned and normalised as one.
LEARNING_KEYS = (
    "learned_kinds",
    "reference_dims",
    "rotations",
    "action_normalization",
    "state_normalization",
    "minimum_range",
    "state_minimum_range",
)
BLOCK_VALUES = 1 << 19  # of actions that statistics take in at once

Steps = tuple[NDArray[np.float32], NDArray[np.float32]]  # states (T, S) and actions (T, D) of consecutive steps


class DescribedSource(Protocol):
    """What every kind of source says of itself."""

    @property
    def root(self) -> Path | str: ...

    @property
    def embodiment(self) -> Embodiment: ...


def fit_embodiments(
    sources: Iterable[TrajectorySource] | TrajectoryStore, chunk_size: int | None = None
) -> list[Embodiment]:
    """The sources' embodiments, in order of first appearance, with statistics over all steps of all their sources.

    Statistics are of what the model learns, fitted in one pass, block by block: of all steps, or, for a body that
    learns relative or delta actions, of all steps of all windows, each compared with its window's first state. Sources
    that come from a generator are held one at a time.

    Args:
        chunk_size: steps in a window, H; needed for a body that learns relative or delta actions.

    Raises:
        ValueError: two sources describe an embodiment of one name differently (by key and both values), a body without
            a step, or no `chunk_size` where it is needed.
    """
    fits: dict[str, _Fit] = {}
    for source, episodes in _episodes(sources):
        fit = fits.get(source.embodiment.name)
        if fit is None:
            fit = fits[source.embodiment.name] = _Fit(source.embodiment, chunk_size)
        _require_same_body(fit.embodiment, source)
        fit.cameras = _common_cameras(fit.cameras, source)
        for states, actions in episodes:
            fit.update(states, actions)
    return [fit.result() for fit in fits.values()]


class _Fit:
    """Statistics of one body, from blocks of about `BLOCK_VALUES` values."""

    def __init__(self, embodiment: Embodiment, chunk_size: int | None) -> None:
        if embodiment.needs_reference and chunk_size is None:
            raise ValueError(
                f"embodiment {embodiment.name!r} learns relative or delta actions, whose statistics are those of "
                "windows: pass chunk_size="
            )
        self.embodiment = embodiment
        self.cameras: list[str] = []
        self._window = chunk_size if embodiment.needs_reference and chunk_size else 1
        self._actions = StatisticsAccumulator(embodiment.model_action_dim)
        self._states = StatisticsAccumulator(embodiment.model_state_dim) if embodiment.state_dim else None
        self._steps_a_block = max(1, BLOCK_VALUES // (self._window * embodiment.action_dim))
        self._waiting: list[Steps] = []
        self._steps_waiting = 0

    def update(self, states: NDArray[np.float32], actions: NDArray[np.float32]) -> None:
        """Takes in an episode."""
        self._waiting.append((states, actions))
        self._steps_waiting += len(actions)
        if self._steps_waiting >= self._steps_a_block:
            self._take_in()

    def result(self) -> Embodiment:
        if self._waiting:
            self._take_in()
        if not self._actions.count:
            raise ValueError(f"embodiment {self.embodiment.name!r} has no steps to fit statistics to: leave it out")
        return replace(
            self.embodiment,
            cameras=self.cameras,
            action_statistics=self._actions.result(),
            state_statistics=None if self._states is None else self._states.result(),
        )

    def _take_in(self) -> None:
        states, actions = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
        left = np.concatenate([np.arange(len(steps), 0, -1) for _, steps in self._waiting])
        self._waiting, self._steps_waiting = [], 0
        body, ahead = self.embodiment, np.arange(self._window)
        for part in np.array_split(np.arange(len(actions)), -(-len(actions) // self._steps_a_block)):
            if self._states is not None:
                self._states.update(body.learned_states(states[part]))
            if not body.needs_reference:
                self._actions.update(body.learned_actions(actions[part]))
                continue
            windows = actions.take(part[:, None] + ahead, axis=0, mode="clip")
            learned = body.learned_actions(windows, states[part])
            self._actions.update(learned[ahead < left[part][:, None]])


def _episodes(
    sources: Iterable[TrajectorySource] | TrajectoryStore,
) -> Iterator[tuple[DescribedSource, Iterator[Steps]]]:
    if isinstance(sources, TrajectoryStore):
        for index, stored in enumerate(sources.sources):
            yield stored, sources.steps(index)
        return
    for source in sources:
        yield source, ((trajectory.states, trajectory.actions) for trajectory in source.trajectories)


def cameras_by_embodiment(sources: Sequence[TrajectorySource]) -> dict[str, list[str]]:
    """The cameras of every embodiment, by its name; a source that has none (motion alone) agrees with every other.

    Raises ValueError when two sources of one embodiment have different cameras, or the same in another order.
    """
    cameras: dict[str, list[str]] = {}
    for source in sources:
        cameras[source.embodiment.name] = _common_cameras(cameras.get(source.embodiment.name, []), source)
    return cameras


def expert_dims(embodiments: Sequence[Embodiment]) -> dict[str, Any]:
    """The fields of an `ExpertConfig` that say for which bodies it is built; dims are those that the model learns."""
    return {
        "embodiments": [embodiment.name for embodiment in embodiments],
        "action_dims": [embodiment.model_action_dim for embodiment in embodiments],
        "state_dims": [embodiment.model_state_dim for embodiment in embodiments],
    }


def split_episodes(
    source: TrajectorySource, holdout: float, seed: int = 0
) -> tuple[TrajectorySource, TrajectorySource]:
    """`source` without, and with only, a share `holdout` in [0, 1) of its episodes, drawn by `seed`.

    At least one episode stays in the first.
    """
    held = held_out(len(source), holdout, seed)
    parts = []
    for wanted in (False, True):
        chosen = [t for t, out in zip(source.trajectories, held.tolist(), strict=True) if out is wanted]
        parts.append(TrajectorySource(source.root, source.fingerprint, source.embodiment, chosen))
    return parts[0], parts[1]


def share_of_episodes(source: TrajectorySource, share: float, seed: int = 0) -> TrajectorySource:
    """`source` with a share in (0, 1] of its episodes, drawn by `seed`, in their order; at least one.

    Of one seed, a smaller share is part of a larger one. Raises ValueError when `share` is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} of episodes must be above 0 and at most 1")
    drawn = np.random.default_rng(seed).permutation(len(source))[: max(1, round(share * len(source)))]
    chosen = [source.trajectories[index] for index in sorted(drawn.tolist())]
    return TrajectorySource(source.root, source.fingerprint, source.embodiment, chosen)


def checkpoint_id(source: DescribedSource, embodiments: Sequence[Embodiment]) -> int:
    """The id of the source's body among a checkpoint's `embodiments`.

    Raises ValueError when it is not among them, or they describe it differently.
    """
    names = [embodiment.name for embodiment in embodiments]
    theirs = source.embodiment
    if theirs.name not in names:
        raise ValueError(f"{source.root}: embodiment {theirs.name!r} is not among the checkpoint's {', '.join(names)}")
    index = names.index(theirs.name)
    require_compatible(embodiments[index], theirs, str(source.root))
    return index


def _require_same_body(known: Embodiment, source: DescribedSource) -> None:
    if (difference := first_difference(known, source.embodiment, (*BODY_KEYS, *LEARNING_KEYS))) is not None:
        key, ours, theirs = difference
        raise ValueError(
            f"{source.root}: embodiment {known.name!r} has {key}={theirs}, another source has {ours}: give one "
            "of them another name"
        )


def _common_cameras(known: list[str], source: DescribedSource) -> list[str]:
    theirs = source.embodiment.cameras
    if theirs and known and theirs != known:
        raise ValueError(
            f"{source.root}: embodiment {source.embodiment.name!r} has cameras={theirs!r}, another source has "
            f"{known!r}: every camera has its slot in the model, so write both datasets with the same cameras in the "
            "same order, or give one body another name"
        )
    return known or theirs


__all__ = [
    "cameras_by_embodiment",
    "checkpoint_id",
    "expert_dims",
    "fit_embodiments",
    "share_of_episodes",
    "split_episodes",
]
