"""What a model learns of the recorded numbers: absolute, relative to the present state, or step by step; and back.

Recorded numbers are a robot's own. A model may learn the same motion in numbers that are easier to learn: positions
relative to where the robot is, steps from one action to the next, rotations without a seam. All of it inverts exactly,
given the raw state at the chunk's first step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .rotations import LEARNED_NAMES, REPRESENTATIONS, RotationGroup, from_matrix, to_6d, to_matrix

ACTION_KINDS = ("absolute", "delta", "relative")
ROTATION_DIMS = len(LEARNED_NAMES)


class LearnedLayout:
    """Where `dim` raw dimensions stand among those of the model, in which each of `rotations` takes six.

    A rotation stands where its first raw dimension stood; all else keeps its order. Attributes: `plain` (raw indices of
    the others), `plain_places` (their indices in the model), `rotation_places` (first index of each rotation, None for
    one without dims here), `dim` (of the model).
    """

    def __init__(self, dim: int, rotations: Sequence[Sequence[int]]) -> None:
        members = {index for group in rotations for index in group}
        first = {min(group): number for number, group in enumerate(rotations) if group}
        self.rotation_places: list[int | None] = [None] * len(rotations)
        plain, places, place = [], [], 0
        for index in range(dim):
            if index in first:
                self.rotation_places[first[index]] = place
                place += ROTATION_DIMS
            elif index not in members:
                plain.append(index)
                places.append(place)
                place += 1
        self.plain, self.plain_places = np.array(plain, dtype=np.intp), np.array(places, dtype=np.intp)
        self.raw_rotations = [list(group) for group in rotations]
        self.dim = place

    def names(self, raw_names: Sequence[str]) -> list[str]:
        """Names of the model's dimensions; a rotation's are `rotation0_x1` ... `rotation0_y3`."""
        names = [""] * self.dim
        for index, place in zip(self.plain, self.plain_places, strict=True):
            names[place] = raw_names[index]
        for number, first in enumerate(self.rotation_places):
            if first is not None:
                names[first : first + ROTATION_DIMS] = [f"rotation{number}_{entry}" for entry in LEARNED_NAMES]
        return names

    def spread(self, values: NDArray[Any], rotation_value: Any) -> NDArray[Any]:
        """One value a raw dimension (..., dim) as one a model dimension; a rotation's is `rotation_value(its own)`."""
        spread = np.empty((*values.shape[:-1], self.dim), dtype=values.dtype)
        spread[..., self.plain_places] = values[..., self.plain]
        for group, first in zip(self.raw_rotations, self.rotation_places, strict=True):
            if first is not None:
                spread[..., first : first + ROTATION_DIMS] = rotation_value(values[..., group], axis=-1)[..., None]
        return spread


class ActionTransform:
    """Recorded actions and states to what a model learns, and actions back.

    Args:
        action_kinds, learned_kinds: per raw action dimension, as recorded and as learned. Where they differ, `relative`
            is a_t+i - s_t and `delta` is a_t+i - a_t+i-1 with a_t-1 := s_t, where t is the chunk's first step.
        reference_dims: per raw action dimension the state dimension that s is.
        state_dim: raw state dimensions, S.
        rotations: learned as 6-D. A relative rotation is R_s^T R_a, a delta R_i-1^T R_i.
    """

    def __init__(
        self,
        action_kinds: Sequence[str],
        learned_kinds: Sequence[str],
        reference_dims: Sequence[int | None],
        state_dim: int,
        rotations: Sequence[RotationGroup] = (),
    ) -> None:
        self.actions = LearnedLayout(len(action_kinds), [group.action_dims for group in rotations])
        self.states = LearnedLayout(state_dim, [group.state_dims for group in rotations])
        self.rotations = list(rotations)
        changed = [learned != kind for learned, kind in zip(learned_kinds, action_kinds, strict=True)]
        self.needs_reference = any(changed)
        plain = [index for index in self.actions.plain if changed[index]]
        self._compared = np.array(plain, dtype=np.intp)
        self._compared_with = np.array([reference_dims[index] for index in plain], dtype=np.intp)
        self._stepwise = np.zeros(len(action_kinds), dtype=bool)
        self._stepwise[[index for index in plain if learned_kinds[index] == "delta"]] = True
        self._rotation_kinds = [
            learned_kinds[group.action_dims[0]] if group.action_dims and changed[group.action_dims[0]] else "absolute"
            for group in rotations
        ]

    def learned_actions(self, actions: NDArray[Any], reference: NDArray[Any] | None) -> NDArray[Any]:
        """Recorded actions (..., H, D) as learned (..., H, Dm); `reference` (..., S) is the raw state at step 0.

        Keeps the dtype. Writes into `actions` when there are no rotations.
        """
        raw = actions
        if self.rotations:
            actions = actions.copy()
        if len(self._compared):
            actions -= self._offset(actions, reference)
            if self._stepwise.any():
                actions[..., 1:, :] -= actions[..., :-1, :] * self._stepwise
        if not self.rotations:
            return actions
        learned = np.empty((*actions.shape[:-1], self.actions.dim), dtype=actions.dtype)
        learned[..., self.actions.plain_places] = actions[..., self.actions.plain]
        for group, kind, first in zip(self.rotations, self._rotation_kinds, self.actions.rotation_places, strict=True):
            if first is not None:
                learned[..., first : first + ROTATION_DIMS] = _learned_rotation(group, kind, raw, reference)
        return learned

    def recorded_actions(self, learned: NDArray[Any], reference: NDArray[Any] | None) -> NDArray[Any]:
        """The inverse of `learned_actions`. With a reference, a quaternion's sign continues the state's."""
        actions = np.empty((*learned.shape[:-1], len(self._stepwise)), dtype=learned.dtype)
        actions[..., self.actions.plain] = learned[..., self.actions.plain_places]
        if len(self._compared):
            if self._stepwise.any():
                actions[..., self._stepwise] = np.cumsum(actions[..., self._stepwise], axis=-2)
            actions += self._offset(actions, reference)
        for group, kind, first in zip(self.rotations, self._rotation_kinds, self.actions.rotation_places, strict=True):
            if first is None:
                continue
            matrices = to_matrix(learned[..., first : first + ROTATION_DIMS], "rotation_6d")
            if kind == "relative":
                matrices = _reference_matrix(group, reference) @ matrices
            elif kind == "delta":
                matrices = _chained(_reference_matrix(group, reference), matrices)
            start = reference[..., group.state_dims] if reference is not None and group.state_dims else None
            actions[..., group.action_dims] = from_matrix(matrices, group.representation, start)
        return actions

    def learned_states(self, states: NDArray[Any]) -> NDArray[Any]:
        """Recorded states (..., S) as learned (..., Sm): rotations as 6-D. The same array when there are none."""
        if self.states.dim == len(self.states.plain):
            return states
        learned = np.empty((*states.shape[:-1], self.states.dim), dtype=states.dtype)
        learned[..., self.states.plain_places] = states[..., self.states.plain]
        for group, first in zip(self.rotations, self.states.rotation_places, strict=True):
            if first is not None:
                matrices = to_matrix(states[..., group.state_dims], group.representation)
                learned[..., first : first + ROTATION_DIMS] = to_6d(matrices)
        return learned

    def _offset(self, actions: NDArray[Any], reference: NDArray[Any] | None) -> NDArray[Any]:
        """(..., 1, D): for every dimension what is taken away from it, zero where nothing is."""
        assert reference is not None
        offset = np.zeros((*reference.shape[:-1], 1, len(self._stepwise)), dtype=actions.dtype)
        offset[..., 0, self._compared] = reference[..., self._compared_with]
        return offset


class BatchNormalizer:
    """Transform and normalisation of whole batches in float32, without a check: the data loader's way.

    Args:
        transform: of the embodiment.
        actions, states: `(center, scale)` of the learned actions (Dm,) and states (Sm,).
    """

    def __init__(
        self,
        transform: ActionTransform,
        actions: tuple[NDArray[np.float64], NDArray[np.float64]],
        states: tuple[NDArray[np.float64], NDArray[np.float64]],
    ) -> None:
        self._transform = transform
        self._actions, self._states = _float32_affine(*actions), _float32_affine(*states)

    def actions(self, actions: NDArray[np.float32], reference: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Raw actions (B, H, D) to the model's (B, H, Dm); `reference` (B, S) raw state. May overwrite `actions`."""
        return _apply(self._actions, self._transform.learned_actions(actions, reference))

    def states(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw states (..., S) to the model's (..., Sm). May overwrite `states`."""
        return _apply(self._states, self._transform.learned_states(states))


def default_reference_dims(action_names: Sequence[str], state_names: Sequence[str]) -> list[int | None]:
    """Per action the state of the same name; where no name is the same and both are equally many, of the same index.

    Names as in `dims_of_the_same_name`.
    """
    by_name = dims_of_the_same_name(action_names, state_names)
    if len(action_names) == len(state_names) and all(index is None for index in by_name):
        return list(range(len(action_names)))
    return by_name


def dims_of_the_same_name(names: Sequence[str | None], others: Sequence[str]) -> list[int | None]:
    """For each of `names` its place among `others`; None where it is not there.

    Of a name that occurs more than once (two arms whose joints are called alike) the first belongs to the first.
    """
    places = {name: index for index, name in enumerate(_numbered(others))}
    return [places.get(name) for name in _numbered(names)]


def _numbered(names: Sequence[str | None]) -> list[tuple[str | None, int]]:
    """Every name, and how often it has occurred before."""
    met: Counter[str | None] = Counter()
    numbered = []
    for name in names:
        numbered.append((name, met[name]))
        met[name] += 1
    return numbered


def learned_kinds_of(kind: str, action_kinds: Sequence[str], gripper_dims: Sequence[int]) -> list[str]:
    """`kind` wherever actions were recorded `absolute` and move no gripper; elsewhere what was recorded."""
    return [
        kind if recorded == "absolute" and dim not in gripper_dims else recorded
        for dim, recorded in enumerate(action_kinds)
    ]


def require_learnable(
    action_names: Sequence[str],
    state_dim: int,
    action_kinds: Sequence[str],
    learned_kinds: Sequence[str],
    reference_dims: Sequence[int | None],
    gripper_dims: Sequence[int],
    rotations: Sequence[RotationGroup],
) -> None:
    """Raises ValueError with the dimension and a remedy when these are no transform that inverts."""
    for label, values in (("learned_kinds", learned_kinds), ("reference_dims", reference_dims)):
        if len(values) != len(action_names):
            raise ValueError(f"{len(values)} {label} for {len(action_names)} action dims")
    rotated = {dim: group for group in rotations for dim in group.action_dims}
    _require_rotation_groups(rotations, len(action_names), state_dim, gripper_dims)
    for dim, (name, recorded, learned, reference) in enumerate(
        zip(action_names, action_kinds, learned_kinds, reference_dims, strict=True)
    ):
        if learned not in ACTION_KINDS:
            raise ValueError(f"learned kind {learned!r} is unknown, use one of {', '.join(ACTION_KINDS)}")
        if reference is not None and not 0 <= reference < state_dim:
            raise ValueError(f"reference_dims[{dim}]={reference} is outside the {state_dim} state dims")
        if dim in rotated:
            first = rotated[dim].action_dims[0]
            if (recorded, learned) != (action_kinds[first], learned_kinds[first]):
                raise ValueError(f"action dim {name!r} is part of a rotation, whose dims must all be of one kind")
        if learned == recorded:
            continue
        if recorded != "absolute":
            raise ValueError(
                f"action dim {name!r} is recorded as {recorded} and cannot be learned as {learned}: a difference would "
                f"be taken of a difference, or undone that never was taken. Set learned_kinds[{dim}] to {recorded!r}, "
                f"or action_kinds[{dim}] to 'absolute' if the data hold targets"
            )
        if dim in gripper_dims:
            raise ValueError(
                f"action dim {name!r} moves a gripper, which stays {recorded} (asked for: {learned}): its command and "
                f"its measured opening are seldom the same quantity. Set learned_kinds[{dim}] to {recorded!r}"
            )
        if dim in rotated and not rotated[dim].state_dims:
            raise ValueError(f"action dim {name!r} cannot be learned as {learned}: its rotation has no state_dims")
        if dim not in rotated and reference is None:
            raise ValueError(
                f"action dim {name!r} cannot be learned as {learned}: no state dim has its name. Name the one to "
                f"compare with in reference_dims[{dim}], or set learned_kinds[{dim}] to {recorded!r}"
            )


def _require_rotation_groups(
    rotations: Sequence[RotationGroup], action_dim: int, state_dim: int, gripper_dims: Sequence[int]
) -> None:
    for number, group in enumerate(rotations):
        where = f"rotations[{number}]"
        if group.representation not in REPRESENTATIONS:
            known = ", ".join(REPRESENTATIONS)
            raise ValueError(f"{where}: representation {group.representation!r} is unknown, use one of {known}")
        size = REPRESENTATIONS[group.representation]
        if not group.action_dims and not group.state_dims:
            raise ValueError(f"{where} has neither action_dims nor state_dims")
        for label, dims, count in (("action", group.action_dims, action_dim), ("state", group.state_dims, state_dim)):
            if dims and (len(dims) != size or not all(0 <= dim < count for dim in dims)):
                raise ValueError(
                    f"{where}: {label}_dims={dims} must be {size} of the {count} {label} dims: {group.representation} "
                    f"has {size} numbers"
                )
        if gripping := set(group.action_dims) & set(gripper_dims):
            raise ValueError(f"{where}: action dim {min(gripping)} moves a gripper and cannot be part of a rotation")
    for label in ("action_dims", "state_dims"):
        dims = [dim for group in rotations for dim in getattr(group, label)]
        if len(set(dims)) != len(dims):
            raise ValueError(f"rotations: {label} {dims} name one twice: a dim is part of one rotation, once")


def _learned_rotation(
    group: RotationGroup, kind: str, actions: NDArray[Any], reference: NDArray[Any] | None
) -> NDArray[Any]:
    """6-D numbers (..., H, 6) of one rotation; a column c of R is that of B^T R as the row c^T B."""
    matrices = to_matrix(actions[..., group.action_dims], group.representation)
    columns = to_6d(matrices)
    if kind == "absolute":
        return columns
    before = _reference_matrix(group, reference)
    if kind == "relative":
        rows = columns.reshape(*columns.shape[:-2], 2 * columns.shape[-2], 3)  # one product a window
        return (rows @ before[..., 0, :, :]).reshape(columns.shape)
    before = np.broadcast_to(before, (*matrices.shape[:-3], 1, 3, 3))
    before = np.concatenate([before, matrices[..., :-1, :, :]], axis=-3)
    return (columns.reshape(*columns.shape[:-1], 2, 3) @ before).reshape(columns.shape)


def _reference_matrix(group: RotationGroup, reference: NDArray[Any] | None) -> NDArray[Any]:
    assert reference is not None
    return to_matrix(reference[..., group.state_dims], group.representation)[..., None, :, :]


def _chained(start: NDArray[Any], steps: NDArray[Any]) -> NDArray[Any]:
    """R_i = R_i-1 D_i of steps (..., H, 3, 3), where R_-1 is `start` (..., 1, 3, 3)."""
    chained = np.empty_like(steps)
    current = start[..., 0, :, :]
    for index in range(steps.shape[-3]):
        current = current @ steps[..., index, :, :]
        chained[..., index, :, :] = current
    return chained


def _float32_affine(center: NDArray[np.float64], scale: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    return center.astype(np.float32), (1 / scale).astype(np.float32)


def _apply(affine: tuple[NDArray[Any], NDArray[Any]], values: NDArray[Any]) -> NDArray[Any]:
    center, factor = affine
    values -= center
    values *= factor
    return values


__all__ = [
    "ACTION_KINDS",
    "ActionTransform",
    "BatchNormalizer",
    "LearnedLayout",
    "default_reference_dims",
    "learned_kinds_of",
    "require_learnable",
]
