"""Windows over trajectories: normalised, padded and masked batches, cut by vectorised indexing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ...configuration.embodiment import Embodiment, NormalizationMode
from .trajectory import Trajectory, TrajectorySource

# What data and checkpoint must agree on for a body's numbers to mean the same, dims first: they tell the most.
BODY_KEYS = ("action_dim", "state_dim", "action_names", "state_names", "control_rate", "action_kinds", "gripper_dims")
NORMALIZATION_KEYS = ("action_normalization", "state_normalization", "minimum_range")  # and datasets with each other
SHOWN_ENTRIES = 8  # of a list in an error


class TrajectoryDataset(Dataset):
    """Every window of `chunk_size` steps of the given sources, as the models want it.

    All steps are normalised once and lie in two flat arrays; a batch is one gather. A window starts at every
    `stride`-th step of an episode and may run over its end: steps beyond are zero and masked.

    Args:
        sources: datasets, of any bodies.
        embodiments: the checkpoint's embodiments with statistics, in the order of their ids; see `fit_embodiments`.
        chunk_size: steps in a window, H.
        history_size: steps of the past window; 0 leaves it out. Short pasts are padded in front and masked.
        stride: steps between the starts of two windows.
        weights: one a source, its share of what `MixtureSampler` draws; default: its share of the windows.

    Indexing with a list gives a batch: `actions` (B, H, D), `action_mask` (B, H, D), `states` (B, H, S), `state`
    (B, S), `embodiment_ids` (B,), and `history_states`, `history_actions`, `history_mask` (B, H_hist, ·) when asked
    for.

    Raises:
        ValueError: no source, a source of an embodiment that is not in `embodiments` or describes it differently
            (dims, names, rate, kinds of action, gripper), a weight that is not positive.
    """

    def __init__(
        self,
        sources: Sequence[TrajectorySource],
        embodiments: Sequence[Embodiment],
        chunk_size: int,
        *,
        history_size: int = 0,
        stride: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:
        trajectories = [trajectory for source in sources for trajectory in source.trajectories]
        if not trajectories:
            raise ValueError("a TrajectoryDataset needs at least one trajectory: the sources given have none")
        for name, value, least in (
            ("chunk_size", chunk_size, 1),
            ("history_size", history_size, 0),
            ("stride", stride, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if weights is not None and (len(weights) != len(sources) or not all(0 < w < np.inf for w in weights)):
            raise ValueError(f"weights={list(weights)} must be positive, one for each of the {len(sources)} sources")
        self.trajectories: list[Trajectory] = trajectories
        self.embodiments = list(embodiments)
        self.chunk_size, self.history_size = chunk_size, history_size
        ids = np.concatenate([_embodiment_ids(source, self.embodiments) for source in sources])
        self._embodiment_of = torch.from_numpy(ids)
        self._dims = torch.tensor([embodiment.action_dim for embodiment in self.embodiments])
        self._states = self._normalized("state", ids)
        self._actions = self._normalized("action", ids)
        lengths = np.array([len(trajectory) for trajectory in trajectories])
        self._start = torch.from_numpy(np.cumsum(lengths) - lengths)
        self._stop = torch.from_numpy(np.cumsum(lengths))
        self._window_trajectory = torch.from_numpy(np.repeat(np.arange(len(lengths)), -(-lengths // stride)))
        within = np.concatenate([np.arange(0, length, stride) for length in lengths])
        self._window_step = self._start[self._window_trajectory] + torch.from_numpy(within)
        self._source_of = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
        self.source_weights = None if weights is None else [float(weight) for weight in weights]

    def __len__(self) -> int:
        return len(self._window_step)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of the windows `indices`."""
        chosen = torch.as_tensor(indices)
        now, trajectory = self._window_step[chosen], self._window_trajectory[chosen]
        ids = self._embodiment_of[trajectory]
        ahead = now[:, None] + torch.arange(self.chunk_size)
        actions, states, mask = self._gather(ahead, trajectory, ids)
        batch = {
            "actions": actions,
            "action_mask": mask,
            "states": states,
            "state": self._states[now],
            "embodiment_ids": ids,
        }
        if self.history_size:
            behind = now[:, None] - torch.arange(self.history_size, 0, -1)
            actions, states, mask = self._gather(behind, trajectory, ids)
            batch |= {"history_actions": actions, "history_states": states, "history_mask": mask}
        return batch

    def frame_of(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """For windows: the trajectory's position in `.trajectories` and the step within it at which each starts."""
        chosen = torch.as_tensor(indices)
        trajectory = self._window_trajectory[chosen]
        return trajectory, self._window_step[chosen] - self._start[trajectory]

    def windows_by_source(self) -> list[Tensor]:
        """For every source, the indices of its windows."""
        owner = torch.from_numpy(self._source_of)[self._window_trajectory]
        return [(owner == index).nonzero().squeeze(-1) for index in range(int(self._source_of.max()) + 1)]

    def _gather(self, steps: Tensor, trajectory: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        inside = (steps >= self._start[trajectory][:, None]) & (steps < self._stop[trajectory][:, None])
        steps = steps.clamp(0, len(self._actions) - 1)
        own = torch.arange(self._actions.shape[1]) < self._dims[ids][:, None]
        actions = self._actions[steps] * inside[..., None]
        states = self._states[steps] * inside[..., None]
        return actions, states, inside[..., None] & own[:, None]

    def _normalized(self, label: str, ids: NDArray[np.int64]) -> Tensor:
        """All steps of all trajectories (N, widest), normalised by their own embodiment and padded with zeros."""
        widest = max(getattr(embodiment, f"{label}_dim") for embodiment in self.embodiments)
        total = sum(len(trajectory) for trajectory in self.trajectories)
        flat = np.zeros((total, widest), dtype=np.float32)
        row = 0
        for trajectory, index in zip(self.trajectories, ids, strict=True):
            embodiment = self.embodiments[index]
            if label == "action":
                values = embodiment.normalize_actions(trajectory.actions)
            else:
                values = embodiment.normalize_state(trajectory.states)
            flat[row : row + len(values), : values.shape[1]] = values
            row += len(values)
        return torch.from_numpy(flat)


class MixtureSampler(Sampler[int]):
    """Window indices for one epoch: a shuffle of all, or, with source weights, as many draws with replacement.

    The order is a function of `seed` and the epoch alone, so a resumed run continues exactly.
    """

    def __init__(self, dataset: TrajectoryDataset, seed: int) -> None:
        self.windows = dataset.windows_by_source()
        self.weights = dataset.source_weights
        self.length, self.seed, self.epoch = len(dataset), seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.weights is None:
            return iter(torch.randperm(self.length, generator=generator).tolist())
        drawn = torch.multinomial(torch.tensor(self.weights), self.length, replacement=True, generator=generator)
        uniform = torch.rand(self.length, generator=generator, dtype=torch.float64)
        counts = torch.tensor([len(windows) for windows in self.windows])
        offsets = torch.cumsum(counts, 0) - counts
        position = (uniform * counts[drawn]).long() + offsets[drawn]
        return iter(torch.cat(self.windows)[position].tolist())


def fit_embodiments(sources: Sequence[TrajectorySource]) -> list[Embodiment]:
    """The sources' embodiments, in order of first appearance, with statistics over all steps of all their sources.

    Raises ValueError when two sources describe an embodiment of one name differently, by key and both values.
    """
    cameras = cameras_by_embodiment(sources)
    fitted: dict[str, Embodiment] = {}
    for source in sources:
        known = fitted.setdefault(source.embodiment.name, source.embodiment)
        if (difference := _difference(known, source.embodiment, (*BODY_KEYS, *NORMALIZATION_KEYS))) is not None:
            key, ours, theirs = difference
            raise ValueError(
                f"{source.root}: embodiment {known.name!r} has {key}={theirs}, another source has {ours}: give one "
                "of them another name"
            )
    for name, embodiment in fitted.items():
        own = [trajectory for source in sources if source.embodiment.name == name for trajectory in source.trajectories]
        states = np.concatenate([trajectory.states for trajectory in own])
        actions = np.concatenate([trajectory.actions for trajectory in own])
        fitted[name] = replace(embodiment, cameras=cameras[name]).with_statistics(states, actions)
    return list(fitted.values())


def cameras_by_embodiment(sources: Sequence[TrajectorySource]) -> dict[str, list[str]]:
    """The cameras of every embodiment, by its name; a source that has none (motion alone) agrees with every other.

    Raises ValueError when two sources of one embodiment have different cameras, or the same in another order.
    """
    cameras: dict[str, list[str]] = {}
    for source in sources:
        name, theirs = source.embodiment.name, source.embodiment.cameras
        known = cameras.get(name) or theirs
        if theirs and theirs != known:
            raise ValueError(
                f"{source.root}: embodiment {name!r} has cameras={theirs!r}, another source has {known!r}: every "
                "camera has its slot in the model, so write both datasets with the same cameras in the same order, or "
                "give one body another name"
            )
        cameras[name] = known
    return cameras


def expert_dims(embodiments: Sequence[Embodiment]) -> dict[str, Any]:
    """The fields of an `ExpertConfig` that say for which bodies it is built."""
    return {
        "embodiments": [embodiment.name for embodiment in embodiments],
        "action_dims": [embodiment.action_dim for embodiment in embodiments],
        "state_dims": [embodiment.state_dim for embodiment in embodiments],
    }


def split_episodes(
    source: TrajectorySource, holdout: float, seed: int = 0
) -> tuple[TrajectorySource, TrajectorySource]:
    """`source` without, and with only, a share `holdout` in [0, 1) of its episodes, drawn by `seed`.

    At least one episode stays in the first.
    """
    order = np.random.default_rng(seed).permutation(len(source))
    held = set(order[: min(round(holdout * len(source)), len(source) - 1)].tolist())
    parts = []
    for wanted in (False, True):
        chosen = [trajectory for index, trajectory in enumerate(source.trajectories) if (index in held) is wanted]
        parts.append(TrajectorySource(source.root, source.fingerprint, source.embodiment, chosen))
    return parts[0], parts[1]


def _embodiment_ids(source: TrajectorySource, embodiments: Sequence[Embodiment]) -> NDArray[np.int64]:
    names = [embodiment.name for embodiment in embodiments]
    theirs = source.embodiment
    if theirs.name not in names:
        raise ValueError(f"{source.root}: embodiment {theirs.name!r} is not among the checkpoint's {', '.join(names)}")
    ours = embodiments[names.index(theirs.name)]
    if (difference := _difference(ours, theirs, BODY_KEYS)) is not None:
        key, expected, found = difference
        raise ValueError(
            f"{source.root}: embodiment {theirs.name!r} has {key}={found}, the checkpoint was trained with "
            f"{expected}: use data of the same body, or give this one another name"
        )
    return np.full(len(source), names.index(theirs.name))


def _difference(ours: Embodiment, theirs: Embodiment, keys: Sequence[str]) -> tuple[str, str, str] | None:
    """The first of `keys` in which two descriptions of one body disagree, and the two values, as an error shows them.

    Of long lists of one length only the first entry that differs is shown.
    """
    for key in keys:
        mine, other = getattr(ours, key), getattr(theirs, key)
        if mine == other:
            continue
        if isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other) > SHOWN_ENTRIES:
            index = next(index for index, pair in enumerate(zip(mine, other, strict=True)) if pair[0] != pair[1])
            key, mine, other = f"{key}[{index}]", mine[index], other[index]
        return key, _shown(mine), _shown(other)
    return None


def _shown(value: Any) -> str:
    return repr(value.value if isinstance(value, NormalizationMode) else value)


def whole_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Collator of datasets that gather a batch themselves (`__getitems__`)."""
    return batch


__all__ = [
    "MixtureSampler",
    "TrajectoryDataset",
    "cameras_by_embodiment",
    "expert_dims",
    "fit_embodiments",
    "split_episodes",
    "whole_batch",
]
