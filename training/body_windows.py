"""Some windows of one body out of a dataset: what the measures of a prior are taken on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..configuration.embodiment import Embodiment
from .data.trajectory_dataset import TrajectoryDataset

LEAST_GROUPS = 8  # fewer episodes are cut into stretches: of two or three episodes there is no distribution


@dataclass(frozen=True)
class BodyWindows:
    """N windows of one embodiment, normalised, of H steps and the body's own D and S dims.

    Args:
        embodiment, index: the body and its id in the checkpoint.
        actions (N, H, D), mask (N, H, D) bool, states (N, H, S): in the model's units.
        reference: (N, S_raw) raw states at the first step, from which relative actions become absolute.
        groups: (N,) what counts as one draw, see `independent_groups`; `episodes`: how many episodes these are.
    """

    embodiment: Embodiment
    index: int
    actions: Tensor
    mask: Tensor
    states: Tensor
    reference: NDArray[np.float32]
    groups: NDArray[np.int64]
    episodes: int

    def __len__(self) -> int:
        return len(self.actions)

    def select(self, rows: ArrayLike) -> BodyWindows:
        """The windows `rows`, an index or a mask."""
        chosen = np.asarray(rows)
        at = torch.from_numpy(chosen)
        tensors = (self.actions[at], self.mask[at], self.states[at])
        return BodyWindows(
            self.embodiment, self.index, *tensors, self.reference[chosen], self.groups[chosen], self.episodes
        )

    def complete(self) -> BodyWindows:
        """Those windows that do not run over their episode's end."""
        return self.select(self.mask.all(dim=2).all(dim=1).numpy())

    def chunks(self) -> NDArray[np.float64]:
        """The actions (N, H, D), normalised."""
        return self.actions.double().numpy()

    def raw(self, chunks: ArrayLike) -> NDArray[np.float64]:
        """Chunks (N, H, D) in the model's units, one a window, as raw actions (N, H, D_raw)."""
        reference = self.reference if self.embodiment.needs_reference else None
        return self.embodiment.denormalize_actions(chunks, reference).astype(np.float64)

    def missed(self, chunks: ArrayLike, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """How far `chunks` (N, H, D) in the model's units lie from `raw` actions (N, H, D_raw), in raw units.

        Of the numbers that say the same rotation those count that lie nearer: beyond a seam nothing is missed.
        """
        answer = self.raw(chunks)
        error = np.abs(answer - raw)
        for group in self.embodiment.rotations:
            dims = group.action_dims
            error[..., dims] = rotation_error(answer[..., dims], raw[..., dims], group.representation)
        return error


def draw_windows(dataset: TrajectoryDataset, index: int, count: int, seed: int) -> BodyWindows:
    """At most `count` windows of the body with id `index`, without replacement, by `seed`; whole ones come first.

    A dataset without that body gives no window.
    """
    embodiment = dataset.embodiments[index]
    owners = [source.embodiment.name for source in dataset.store.sources]
    own = [
        windows for windows, name in zip(dataset.windows_by_source(), owners, strict=True) if name == embodiment.name
    ]
    ends = np.cumsum([len(windows) for windows in own], dtype=np.int64)
    total = int(ends[-1]) if own else 0
    random = np.random.default_rng(seed)
    chosen = random.choice(total, min(2 * count, total), replace=False).tolist() if total else []
    windows = [_nth(own, ends, position) for position in chosen]
    batch = dataset.__getitems__(windows)
    whole = batch["action_mask"].any(dim=2).all(dim=1).numpy()
    kept = np.argsort(~whole, kind="stable")[:count]
    windows = [windows[row] for row in kept]
    episode, step = (values.numpy() for values in dataset.frame_of(windows))
    rows = torch.from_numpy(kept)
    return BodyWindows(
        embodiment=embodiment,
        index=index,
        actions=batch["actions"][rows][..., : embodiment.model_action_dim],
        mask=batch["action_mask"][rows][..., : embodiment.model_action_dim],
        states=batch["states"][rows][..., : embodiment.model_state_dim],
        reference=np.array(dataset.first_states(windows), dtype=np.float32).reshape(len(windows), embodiment.state_dim),
        groups=independent_groups(episode, step),
        episodes=len(np.unique(episode)),
    )


def independent_groups(trajectory: NDArray[np.int64], step: NDArray[np.int64]) -> NDArray[np.int64]:
    """A group for each window (N,): its episode, or, of fewer than eight episodes, a stretch of its episode.

    Windows of one episode overlap and are no independent draws. Where there are few episodes, each is cut into as many
    stretches of time as make eight groups (our choice): neighbours remain together, but intervals are then too narrow.
    """
    _, episode = np.unique(trajectory, return_inverse=True)
    count = int(episode.max()) + 1 if len(episode) else 0
    if count >= LEAST_GROUPS or not count:
        return episode
    parts = -(-LEAST_GROUPS // count)
    groups = np.empty_like(episode)
    for number in range(count):
        rows = np.flatnonzero(episode == number)
        order = rows[np.argsort(step[rows], kind="stable")]
        for part, members in enumerate(np.array_split(order, parts)):
            groups[members] = number * parts + part
    return groups


def rotation_error(answer: NDArray[np.float64], raw: NDArray[np.float64], representation: str) -> NDArray[np.float64]:
    """|answer - raw| (..., n), of the representation's numbers for that rotation which lie nearer."""
    one = np.abs(answer - raw)
    match representation:
        case "rotation_6d":
            return one
        case "euler_xyz":
            return np.minimum(one % (2 * np.pi), -one % (2 * np.pi))
        case "axis_angle":
            angle = np.linalg.norm(answer, axis=-1, keepdims=True)
            twin = answer * (1 - 2 * np.pi / np.maximum(angle, 1e-9))
        case _:
            twin = -answer  # a quaternion
    other = np.abs(twin - raw)
    return np.where(other.sum(-1, keepdims=True) < one.sum(-1, keepdims=True), other, one)


def _nth(ranges: Sequence[range], ends: NDArray[np.int64], position: int) -> int:
    """The entry at `position` of all `ranges` in a row, which end at `ends`."""
    index = int(np.searchsorted(ends, position, side="right"))
    return ranges[index][position - int(ends[index]) + len(ranges[index])]


__all__ = ["BodyWindows", "draw_windows", "independent_groups", "rotation_error"]
