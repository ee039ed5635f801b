"""Windows over trajectories: normalised, padded and masked batches, gathered from flat arrays of raw steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ...configuration.embodiment import Embodiment
from .embodiment_fitting import cameras_by_embodiment, checkpoint_id, expert_dims, fit_embodiments, split_episodes
from .mixture_sampler import MixtureSampler
from .trajectory import TrajectorySource
from .trajectory_store import TrajectoryStore

RELEASE_WINDOWS = 1 << 17  # gathered, after which a mapped store's pages leave the process's memory


class TrajectoryDataset(Dataset):
    """Every window of `chunk_size` steps of the given sources, as the models want it.

    Raw steps lie in the flat arrays of a `TrajectoryStore`; a batch is gathered, normalised and padded body by body. A
    window starts at every `stride`-th step of an episode and may run over its end: steps beyond are zero and masked.
    What relative actions are compared with is the raw state at a window's first real step.

    Args:
        sources: datasets, of any bodies, or a store of them; of a mapped store only what is drawn is read.
        embodiments: the checkpoint's embodiments with statistics, in the order of their ids; see `fit_embodiments`.
        chunk_size: steps in a window, H.
        history_size: steps of the past window; 0 leaves it out. Short pasts are padded in front and masked.
        stride: steps between the starts of two windows.
        weights: one a source, its share of what `MixtureSampler` draws; default: its share of the windows.

    Indexing with a list gives a batch: `actions` (B, H, D), `action_mask` (B, H, D), `states` (B, H, S), `state`
    (B, S), `embodiment_ids` (B,), and `history_states`, `history_actions`, `history_mask` (B, H_hist, ·) when asked
    for; D and S are the widest model dims of `embodiments`.

    Raises:
        ValueError: no trajectory, a source of an embodiment that is not in `embodiments` or describes it differently
            (dims, names, rate, kinds of action, gripper), a weight that is not positive.
    """

    def __init__(
        self,
        sources: Sequence[TrajectorySource] | TrajectoryStore,
        embodiments: Sequence[Embodiment],
        chunk_size: int,
        *,
        history_size: int = 0,
        stride: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:
        store = sources if isinstance(sources, TrajectoryStore) else TrajectoryStore.from_sources(sources)
        if not len(store):
            raise ValueError("a TrajectoryDataset needs at least one trajectory: the sources given have none")
        for name, value, least in (
            ("chunk_size", chunk_size, 1),
            ("history_size", history_size, 0),
            ("stride", stride, 1),
        ):
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        if weights is not None and (len(weights) != len(store.sources) or not all(0 < w < np.inf for w in weights)):
            raise ValueError(
                f"weights={list(weights)} must be positive, one for each of the {len(store.sources)} sources"
            )
        self.store, self.embodiments = store, list(embodiments)
        self.chunk_size, self.history_size, self.stride = chunk_size, history_size, stride
        self.source_weights = None if weights is None else [float(weight) for weight in weights]
        ids = {source.embodiment.name: checkpoint_id(source, self.embodiments) for source in store.sources}
        self._ids = np.array([ids[name] for name in store.bodies])
        self._bodies = [
            _BodySteps(states, actions, self.embodiments[ids[name]])
            for name, states, actions in zip(store.bodies, store.states, store.actions, strict=True)
        ]
        dims = np.array([embodiment.model_action_dim for embodiment in self.embodiments])
        self._widths = int(dims.max()), max(embodiment.model_state_dim for embodiment in self.embodiments)
        self._own_dims = np.arange(self._widths[0]) < dims[:, None]
        counts = -(-store.episodes.length // stride)
        self._first_window = np.cumsum(counts) - counts
        self._length = int(counts.sum())
        self._gathered = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {key: value[0] for key, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """The batch of the windows `indices`. Raises IndexError when there is no such window."""
        episode, step = self._locate(indices)
        episodes = self.store.episodes
        body, start = episodes.body[episode], episodes.start[episode]
        ids = self._ids[body]
        size = self.chunk_size
        ahead = np.minimum(episodes.length[episode] - step, size)
        actions, states = self._gather(body, start + step, size)
        inside = np.arange(size) < ahead[:, None]
        actions[~inside] = 0
        states[~inside] = 0
        batch = {
            "actions": actions,
            "action_mask": inside[:, :, None] & self._own_dims[ids][:, None],
            "states": states,
            "state": states[:, 0].copy(),
            "embodiment_ids": ids,
        }
        if self.history_size:
            batch |= self._history(body, start, step)
        self._release(len(ids))
        return {key: torch.from_numpy(value) for key, value in batch.items()}

    def frame_of(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """For windows: the episode's position among all sources' episodes, and the step in it at which each starts."""
        episode, step = self._locate(indices)
        return torch.from_numpy(episode), torch.from_numpy(step)

    def first_states(self, indices: Sequence[int]) -> list[NDArray[np.float32]]:
        """For windows: the raw state (S,) at which each starts, from which relative actions become absolute."""
        episodes = self.store.episodes
        places = ((episodes.body[e], episodes.start[e] + s) for e, s in zip(*self._locate(indices), strict=True))
        return [self.store.states[body][row].copy() for body, row in places]

    def windows_by_source(self) -> list[range]:
        """For every source, the indices of its windows."""
        episodes = [source.episodes for source in self.store.sources]
        ends = np.append(self._first_window, self._length)[np.cumsum(episodes)].tolist()
        return [range(first, end) for first, end in zip([0, *ends[:-1]], ends, strict=True)]

    def _locate(self, indices: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The episode of each window, and the step in it at which it starts."""
        chosen = np.asarray(indices, dtype=np.int64)
        if chosen.view(np.uint64).max(initial=0) >= self._length:  # unsigned, a negative index is a large one
            raise IndexError(f"windows {chosen.min()} to {chosen.max()} of {self._length}")
        episode = np.searchsorted(self._first_window, chosen, side="right") - 1
        return episode, (chosen - self._first_window[episode]) * self.stride

    def _history(
        self, body: NDArray[np.int32], start: NDArray[np.int64], step: NDArray[np.int64]
    ) -> dict[str, NDArray]:
        """The `history_size` steps before `step`, fewer at the start of an episode.

        Gathered from the first real one, so that it is what the others are compared with, then moved to the end.
        """
        size = self.history_size
        behind = np.minimum(step, size)
        actions, states = self._gather(body, start + step - behind, size)
        place = np.arange(size) - (size - behind)[:, None]
        inside = (place >= 0)[:, :, None]
        place = np.maximum(place, 0)[:, :, None]
        return {
            "history_actions": np.take_along_axis(actions, place, 1) * inside,
            "history_states": np.take_along_axis(states, place, 1) * inside,
            "history_mask": inside & self._own_dims[self._ids[body]][:, None],
        }

    def _gather(
        self, body: NDArray[np.int32], first: NDArray[np.int64], size: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Normalised actions (B, size, D) and states (B, size, S) of `size` rows from `first` on, whoever owns them."""
        parts = []
        for index in np.flatnonzero(np.bincount(body)):
            rows = np.flatnonzero(body == index)
            parts.append((rows, *self._bodies[index].windows(first[rows], size)))
        if len(parts) == 1 and (parts[0][1].shape[2], parts[0][2].shape[2]) == self._widths:
            return parts[0][1:]
        actions, states = (np.zeros((len(first), size, width), dtype=np.float32) for width in self._widths)
        for rows, own_actions, own_states in parts:
            actions[rows, :, : own_actions.shape[2]] = own_actions
            states[rows, :, : own_states.shape[2]] = own_states
        return actions, states

    def _release(self, windows: int) -> None:
        self._gathered += windows
        if self._gathered >= RELEASE_WINDOWS:
            self.store.release()
            self._gathered = 0


class _BodySteps:
    """All steps of one body, and how they are normalised."""

    def __init__(self, states: NDArray[np.float32], actions: NDArray[np.float32], embodiment: Embodiment) -> None:
        self._states, self._actions = states, actions
        self._normalizer = embodiment.batch_normalizer()
        self._needs_reference = embodiment.needs_reference

    def windows(self, first: NDArray[np.int64], size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Normalised actions (n, size, D) and states (n, size, S); the last row stands for those beyond it."""
        rows = first[:, None] + np.arange(size)
        actions, states = (values.take(rows, axis=0, mode="clip") for values in (self._actions, self._states))
        reference = states[:, 0].copy() if self._needs_reference else None
        return self._normalizer.actions(actions, reference), self._normalizer.states(states)


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
