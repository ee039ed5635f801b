"""Embodiments: what a robot's numbers mean, what a model learns of them, and how they are normalised.

An embodiment names every action and state dimension, says how fast the robot is controlled and what kind of action it
takes, and carries the statistics of its data. It is plain numpy and JSON, so that reading a robot's description loads
no deep-learning library.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .action_transforms import (
    ACTION_KINDS,
    ActionTransform,
    BatchNormalizer,
    default_reference_dims,
    learned_kinds_of,
    require_learnable,
)
from .feature_statistics import FeatureStatistics, NormalizationMode, require_finite
from .rotations import RotationGroup, require_rotations

EMBODIMENTS_FILE = "embodiments.json"
EMBODIMENTS_VERSION = 2  # 2: learned_kinds, reference_dims, rotations, state_minimum_range
REQUIRED_KEYS = ("name", "action_names", "state_names", "control_rate")


class _Derived(list[Any]):
    """A list that was not given and follows from other fields; `dataclasses.replace` derives it anew."""


@dataclass(frozen=True)
class Embodiment:
    """One robot body, as a dataset and a policy see it, and what a model learns of its numbers.

    Raw numbers (`action_dim`, `state_dim`) are the robot's. The model's (`model_action_dim`, `model_state_dim`) are
    those after the transforms of `learned_kinds` and `rotations`; networks, padding and statistics are of these.

    Args:
        name: identifier, unique within a checkpoint (for example `metaworld_sawyer`).
        action_names, state_names: one name a raw dimension; their lengths are the action dim and the state dim.
        control_rate: control steps per second (Hz) of the data and of the policy.
        action_kinds: per raw action dimension what was recorded: `absolute` (a target), `delta` (a displacement, from
            the previous target or the present pose, in any unit) or `relative` (difference to the state at the start of
            the chunk). Default: absolute everywhere.
        gripper_dims: indices of action dimensions that open and close a gripper.
        cameras: camera names in the order of the model's camera slots.
        action_normalization, state_normalization: see `NormalizationMode`.
        minimum_range: least range (units of the learned values) that normalisation may divide by, a number or one a raw
            action dimension; a rotation takes the smallest of its own. Default 0.01.
        action_statistics, state_statistics: of learned values; needed by every mode but `identity`.
        learned_kinds: per raw action dimension what the model learns. What was recorded `absolute` may be learned
            `relative` (to the state at the chunk's first step) or as `delta` (from one action to the next, the first
            from that state); all else, and a gripper, as recorded. Default: everything as recorded.
        reference_dims: per raw action dimension the state dimension that it is compared with, or None. Default: the
            state of the same name; where no name is the same and both are equally many, of the same index.
        rotations: dimensions that are a rotation together; the model learns them as 6-D.
        state_minimum_range: as `minimum_range`, a number or one a raw state dimension. Default: `minimum_range`, or
            its smallest entry.

    Raises:
        ValueError: on an empty name, a missing dimension, an unknown kind, a kind that cannot be learned, an index out
            of range, or statistics whose length is not the model's dimension.
    """

    name: str
    action_names: list[str]
    state_names: list[str]
    control_rate: float
    action_kinds: list[str] = field(default_factory=list)
    gripper_dims: list[int] = field(default_factory=list)
    cameras: list[str] = field(default_factory=list)
    action_normalization: NormalizationMode = NormalizationMode.QUANTILE
    state_normalization: NormalizationMode = NormalizationMode.QUANTILE
    minimum_range: float | list[float] = 0.01
    action_statistics: FeatureStatistics | None = None
    state_statistics: FeatureStatistics | None = None
    learned_kinds: list[str] = field(default_factory=list)
    reference_dims: list[int | None] = field(default_factory=list)
    rotations: list[RotationGroup] = field(default_factory=list)
    state_minimum_range: float | list[float] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "action_normalization", NormalizationMode(self.action_normalization))
        object.__setattr__(self, "state_normalization", NormalizationMode(self.state_normalization))
        self._derive("action_kinds", ["absolute"] * len(self.action_names))
        self._derive("learned_kinds", self.action_kinds)
        self._derive("reference_dims", default_reference_dims(self.action_names, self.state_names))
        try:
            self._validate()
        except ValueError as error:
            raise ValueError(f"embodiment {self.name!r}: {error}") from None

    def _derive(self, key: str, default: Sequence[Any]) -> None:
        given = getattr(self, key)
        if not given or isinstance(given, _Derived) or given == default:
            object.__setattr__(self, key, _Derived(default))

    def _validate(self) -> None:
        if not self.name or "/" in self.name:
            raise ValueError("a name must be non-empty and without '/'")
        if not self.action_names:
            raise ValueError("action_names is empty, name every action dimension")
        if not self.control_rate > 0:
            raise ValueError(f"control_rate must be positive (Hz), got {self.control_rate}")
        if len(self.action_kinds) != self.action_dim:
            raise ValueError(f"{len(self.action_kinds)} action_kinds for {self.action_dim} action dims")
        for kind in self.action_kinds:
            if kind not in ACTION_KINDS:
                raise ValueError(f"action kind {kind!r} is unknown, use one of {', '.join(ACTION_KINDS)}")
        for dim in self.gripper_dims:
            if not 0 <= dim < self.action_dim:
                raise ValueError(f"gripper dim {dim} is outside the {self.action_dim} action dims")
        require_learnable(
            self.action_names,
            self.state_dim,
            self.action_kinds,
            self.learned_kinds,
            self.reference_dims,
            self.gripper_dims,
            self.rotations,
        )
        _require_range(self.minimum_range, "minimum_range", "action", self.action_dim)
        if self.state_minimum_range is not None:
            _require_range(self.state_minimum_range, "state_minimum_range", "state", self.state_dim)
        for label, statistics, dim in (
            ("action", self.action_statistics, self.model_action_dim),
            ("state", self.state_statistics, self.model_state_dim),
        ):
            if statistics is not None and statistics.dim != dim:
                raise ValueError(f"{label}_statistics have {statistics.dim} dims, the {label} has {dim}")

    @property
    def action_dim(self) -> int:
        """Raw action dimensions, D_e."""
        return len(self.action_names)

    @property
    def state_dim(self) -> int:
        """Raw state dimensions, S_e."""
        return len(self.state_names)

    @property
    def model_action_dim(self) -> int:
        """Action dimensions that a model predicts, Dm: each rotation takes six."""
        return self._transform.actions.dim

    @property
    def model_state_dim(self) -> int:
        """State dimensions that a model reads, Sm."""
        return self._transform.states.dim

    @property
    def model_action_names(self) -> list[str]:
        return self._transform.actions.names(self.action_names)

    @property
    def model_state_names(self) -> list[str]:
        return self._transform.states.names(self.state_names)

    @property
    def needs_reference(self) -> bool:
        """Whether actions are learned relative to the state, which then must be given at the chunk's first step."""
        return self._transform.needs_reference

    def learning(self, kind: str) -> Embodiment:
        """A copy without statistics that learns `kind` wherever an action was recorded absolute and moves no gripper.

        Raises ValueError on an unknown kind, or where no state is known to compare with.
        """
        kinds = learned_kinds_of(kind, self.action_kinds, self.gripper_dims)
        return replace(self, learned_kinds=kinds, action_statistics=None, state_statistics=None)

    def changed(self, changes: Mapping[str, Any]) -> Embodiment:
        """A copy with other fields, given as in `from_dict`, and without statistics, which were of the old ones.

        A field that was never given follows from the new ones: with other names, other dims are compared.
        """
        given = {key: value for key, value in self.to_dict().items() if not isinstance(getattr(self, key), _Derived)}
        return Embodiment.from_dict({**given, "action_statistics": None, "state_statistics": None, **changes})

    def learned_actions(self, actions: ArrayLike, reference: ArrayLike | None = None) -> NDArray[np.float64]:
        """Raw actions (..., H, action_dim) as learned (..., H, model_action_dim), before normalisation.

        Args:
            actions: consecutive steps; a single one (action_dim,) where no reference is needed.
            reference: raw state (..., state_dim) at the first step.

        Raises:
            ValueError: other dims, a value that is not finite, numbers that are no rotation, a reference that is needed
                and not given.
        """
        array = self._checked_raw(actions, "action").copy()
        if array.ndim == 1:
            return self.learned_actions(array[None], reference)[0]
        return self._transform.learned_actions(array, self._reference(reference, array))

    def recorded_actions(self, learned: ArrayLike, reference: ArrayLike | None = None) -> NDArray[np.float64]:
        """The inverse of `learned_actions`; errors likewise."""
        array = self._checked(learned, "action", self.model_action_names)
        if array.ndim == 1:
            return self.recorded_actions(array[None], reference)[0]
        return self._transform.recorded_actions(array, self._reference(reference, array))

    def learned_states(self, states: ArrayLike) -> NDArray[np.float64]:
        """Raw states (..., state_dim) as learned (..., model_state_dim), before normalisation."""
        return self._transform.learned_states(self._checked_raw(states, "state"))

    def normalize_actions(self, actions: ArrayLike, reference: ArrayLike | None = None) -> NDArray[np.float32]:
        """Raw actions to the model's units; arguments and errors as `learned_actions`."""
        center, scale = self._affine("action")
        return ((self.learned_actions(actions, reference) - center) / scale).astype(np.float32)

    def denormalize_actions(self, actions: ArrayLike, reference: ArrayLike | None = None) -> NDArray[np.float32]:
        """The inverse of `normalize_actions`."""
        center, scale = self._affine("action")
        learned = self._checked(actions, "action", self.model_action_names) * scale + center
        return self.recorded_actions(learned, reference).astype(np.float32)

    def normalize_state(self, state: ArrayLike) -> NDArray[np.float32]:
        """Raw proprioceptive states (..., state_dim) to the model's units; errors as `learned_actions`."""
        center, scale = self._affine("state")
        return ((self.learned_states(state) - center) / scale).astype(np.float32)

    def model_action_mask(self, mask: ArrayLike) -> NDArray[np.bool_]:
        """A mask of raw dims (..., action_dim) as one of the model's; a rotation is real when all its numbers are."""
        return self._transform.actions.spread(np.asarray(mask, dtype=bool), np.all)

    def model_minimum_range(self, label: str) -> NDArray[np.float64]:
        """The least range of every model dimension of `label`, `action` or `state`."""
        if label == "action":
            return self._transform.actions.spread(_per_dim(self.minimum_range, self.action_dim), np.min)
        least = self.state_minimum_range
        if least is None:
            least = float(np.min(self.minimum_range))
        return self._transform.states.spread(_per_dim(least, self.state_dim), np.min)

    def batch_normalizer(self) -> BatchNormalizer:
        """Normalisation of whole batches without checks, for data loaders. Raises ValueError without statistics."""
        return self._batch_normalizer

    def with_statistics(self, states: ArrayLike, actions: ArrayLike) -> Embodiment:
        """A copy with the exact statistics of these data, which must fit into memory (else `StatisticsAccumulator`).

        Args:
            states: raw (N, state_dim).
            actions: raw steps (N, action_dim); where a reference is needed, windows (N, H, action_dim) that begin at
                those states.
        """
        windows = np.ndim(actions) == 3 and self.state_dim
        learned = self.learned_actions(actions, states if windows else None)
        return replace(
            self,
            action_statistics=FeatureStatistics.from_values(learned.reshape(-1, self.model_action_dim)),
            state_statistics=FeatureStatistics.from_values(self.learned_states(states)) if self.state_dim else None,
        )

    def to_dict(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, list) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Embodiment:
        """The inverse of `to_dict`. `learned_kinds` may be one word, as in `learning`.

        Raises ValueError naming a key that is unknown, with the nearest known one, or missing.
        """
        name = values.get("name", "?")
        known = [f.name for f in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            near = difflib.get_close_matches(str(unknown[0]), known, n=1)
            hint = f", did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
            raise ValueError(f"embodiment {name!r}: unknown key {unknown[0]!r}{hint}")
        missing = [key for key in REQUIRED_KEYS if key not in values]
        if missing:
            raise ValueError(f"embodiment {name!r}: key {missing[0]!r} is missing")
        values = dict(values)
        for key in ("action_statistics", "state_statistics"):
            if values.get(key) is not None:
                values[key] = FeatureStatistics(**values[key])
        values["rotations"] = [RotationGroup(**group) for group in values.get("rotations") or []]
        if isinstance(word := values.get("learned_kinds"), str):
            del values["learned_kinds"]
            return cls(**values).learning(word)
        return cls(**values)

    @cached_property
    def _transform(self) -> ActionTransform:
        return ActionTransform(
            self.action_kinds, self.learned_kinds, self.reference_dims, self.state_dim, self.rotations
        )

    @cached_property
    def _batch_normalizer(self) -> BatchNormalizer:
        return BatchNormalizer(self._transform, self._affine("action"), self._affine("state"))

    def _affine(self, label: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mode: NormalizationMode = getattr(self, f"{label}_normalization")
        dim: int = getattr(self, f"model_{label}_dim")
        statistics: FeatureStatistics | None = getattr(self, f"{label}_statistics")
        if mode is NormalizationMode.IDENTITY or dim == 0:
            return np.zeros(dim), np.ones(dim)
        if statistics is None:
            raise ValueError(
                f"embodiment {self.name!r} has no {label}_statistics, which {label}_normalization={mode.value!r} "
                "needs: fit them with with_statistics(states, actions), or use 'identity'"
            )
        return statistics.affine(mode, self.model_minimum_range(label))

    def _reference(self, reference: ArrayLike | None, actions: NDArray[np.float64]) -> NDArray[np.float64] | None:
        if reference is not None:
            state = self._checked_raw(reference, "state")
            if state.ndim > 1 and state.shape[:-1] != actions.shape[:-2]:
                raise ValueError(
                    f"embodiment {self.name!r}: states of shape {state.shape} for actions of shape {actions.shape}: "
                    "pass the state at each chunk's first step"
                )
            return state
        if self.needs_reference:
            asked = zip(self.learned_kinds, self.action_kinds, strict=True)
            kinds = " and ".join(sorted({learned for learned, recorded in asked if learned != recorded}))
            raise ValueError(
                f"embodiment {self.name!r} learns {kinds} actions from recorded absolute ones: pass the raw state "
                f"({self.state_dim} dims) at the chunk's first step"
            )
        return None

    def _checked_raw(self, values: ArrayLike, label: str) -> NDArray[np.float64]:
        array = self._checked(values, label, getattr(self, f"{label}_names"))
        for group in self.rotations:
            if dims := getattr(group, f"{label}_dims"):
                what = f"embodiment {self.name!r}: {label} dims {dims}"
                require_rotations(array[..., dims], group.representation, what)
        return array

    def _checked(self, values: ArrayLike, label: str, names: Sequence[str]) -> NDArray[np.float64]:
        array = np.asarray(values, dtype=np.float64)
        if array.ndim == 0 or array.shape[-1] != len(names):
            got = "a scalar" if array.ndim == 0 else f"{array.shape[-1]} {label} dims"
            raise ValueError(f"embodiment {self.name!r} has {len(names)} {label} dims, got {got} (shape {array.shape})")
        require_finite(array, f"embodiment {self.name!r}: {label}", names)
        return array


def save_embodiments(embodiments: Sequence[Embodiment], folder: str | Path) -> Path:
    """Writes `embodiments.json` into `folder`; the order is the models' embodiment id. Returns the file's path."""
    path = Path(folder) / EMBODIMENTS_FILE
    content = {"version": EMBODIMENTS_VERSION, "embodiments": [embodiment.to_dict() for embodiment in embodiments]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def load_embodiments(file: str | Path) -> list[Embodiment]:
    """Reads an `embodiments.json` (the file, or a folder that holds one), of this version or an older one.

    Version 1 knew neither learned kinds nor rotations: its statistics are of the recorded numbers, which is what their
    defaults mean. Raises ValueError naming file and key.
    """
    path = Path(file)
    path = path / EMBODIMENTS_FILE if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] not in range(1, EMBODIMENTS_VERSION + 1):
            raise ValueError(f"version {content['version']!r} is not 1 to {EMBODIMENTS_VERSION}: update priorvla")
        return [Embodiment.from_dict(values) for values in content["embodiments"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a valid list of embodiments: {error}") from error


def _require_range(value: float | list[float], key: str, label: str, dim: int) -> None:
    if not np.all(np.asarray(value) > 0):
        raise ValueError(f"{key} must be positive, got {value}")
    if isinstance(value, list) and len(value) != dim:
        raise ValueError(f"{len(value)} {key} entries for {dim} {label} dims")


def _per_dim(value: float | list[float], dim: int) -> NDArray[np.float64]:
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (dim,))


__all__ = [
    "ACTION_KINDS",
    "EMBODIMENTS_FILE",
    "EMBODIMENTS_VERSION",
    "Embodiment",
    "FeatureStatistics",
    "NormalizationMode",
    "RotationGroup",
    "load_embodiments",
    "save_embodiments",
]
