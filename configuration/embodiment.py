"""Embodiments: what a robot's numbers mean, and how they are normalised.

An embodiment names every action and state dimension, says how fast the robot is controlled and what kind of action it
takes, and carries the statistics of its data. It is plain numpy and JSON, so that reading a robot's description loads
no deep-learning library.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

EMBODIMENTS_FILE = "embodiments.json"
EMBODIMENTS_VERSION = 1
ACTION_KINDS = ("absolute", "delta", "relative")


class NormalizationMode(StrEnum):
    """How a dimension's raw values are mapped to about [-1, 1]; all modes are affine, so they invert exactly."""

    MEAN_STD = "mean_std"
    MIN_MAX = "min_max"
    QUANTILE = "quantile"
    QUANTILE_10_90 = "quantile_10_90"
    IDENTITY = "identity"


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of raw values (the dataset's own units), over `count` steps. Every list has one entry a dimension."""

    mean: list[float]
    std: list[float]
    min: list[float]
    max: list[float]
    q01: list[float]
    q10: list[float]
    q90: list[float]
    q99: list[float]
    count: int

    @classmethod
    def from_values(cls, values: ArrayLike) -> FeatureStatistics:
        """Exact statistics of `values` (N, dim), in float64. Raises ValueError when N is 0 or a value is not finite."""
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 2 or len(array) == 0:
            raise ValueError(f"statistics need values of shape (N, dim) with N > 0, got shape {array.shape}")
        _require_finite(array, "values")
        q01, q10, q90, q99 = np.quantile(array, [0.01, 0.10, 0.90, 0.99], axis=0)
        columns = {
            "mean": array.mean(0),
            "std": array.std(0),
            "min": array.min(0),
            "max": array.max(0),
            "q01": q01,
            "q10": q10,
            "q90": q90,
            "q99": q99,
        }
        return cls(**{name: column.tolist() for name, column in columns.items()}, count=len(array))

    @property
    def dim(self) -> int:
        return len(self.mean)

    def affine(
        self, mode: NormalizationMode, minimum_range: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """`(center, scale)`, each (dim,), of the map raw -> (raw - center) / scale.

        `scale` is the standard deviation or half the mode's range, and never below `minimum_range / 2`: a joint that
        hardly moved in the data (q01 = q99) cannot turn a millimetre into a thousand standard deviations (our choice;
        openpi#814 is what happens otherwise).
        """
        floor = np.broadcast_to(np.asarray(minimum_range, dtype=np.float64), (self.dim,)) / 2
        if mode is NormalizationMode.IDENTITY:
            return np.zeros(self.dim), np.ones(self.dim)
        if mode is NormalizationMode.MEAN_STD:
            return np.asarray(self.mean), np.maximum(self.std, floor)
        bounds = {
            NormalizationMode.MIN_MAX: (self.min, self.max),
            NormalizationMode.QUANTILE: (self.q01, self.q99),
            NormalizationMode.QUANTILE_10_90: (self.q10, self.q90),
        }
        low, high = (np.asarray(bound) for bound in bounds[mode])
        return (low + high) / 2, np.maximum((high - low) / 2, floor)


@dataclass(frozen=True)
class Embodiment:
    """One robot body, as a dataset and a policy see it.

    Args:
        name: identifier, unique within a checkpoint (for example `metaworld_sawyer`).
        action_names, state_names: one name a dimension; their lengths are the action dim and the state dim.
        control_rate: control steps per second (Hz) of the data and of the policy.
        action_kinds: per action dimension `absolute` (a target), `delta` (difference to the previous action) or
            `relative` (difference to the current state). Default: absolute everywhere.
        gripper_dims: indices of action dimensions that open and close a gripper.
        cameras: camera names in the order of the model's camera slots.
        action_normalization, state_normalization: see `NormalizationMode`.
        minimum_range: least range (raw units) that normalisation may divide by, a number or one a dimension of the
            action; states use it too when it is a number. Default 0.01.
        action_statistics, state_statistics: of raw values; needed by every mode but `identity`.

    Raises:
        ValueError: on an empty name, a missing dimension, an unknown action kind, a gripper dim out of range, or
            statistics whose length is not the dimension's count.
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "action_normalization", NormalizationMode(self.action_normalization))
        object.__setattr__(self, "state_normalization", NormalizationMode(self.state_normalization))
        if not self.action_kinds:
            object.__setattr__(self, "action_kinds", ["absolute"] * len(self.action_names))
        self._validate()

    def _validate(self) -> None:
        where = f"embodiment {self.name!r}"
        if not self.name or "/" in self.name:
            raise ValueError(f"{where}: a name must be non-empty and without '/'")
        if not self.action_names:
            raise ValueError(f"{where}: action_names is empty, name every action dimension")
        if not self.control_rate > 0:
            raise ValueError(f"{where}: control_rate must be positive (Hz), got {self.control_rate}")
        if len(self.action_kinds) != self.action_dim:
            raise ValueError(f"{where}: {len(self.action_kinds)} action_kinds for {self.action_dim} action dims")
        for kind in self.action_kinds:
            if kind not in ACTION_KINDS:
                raise ValueError(f"{where}: action kind {kind!r} is unknown, use one of {', '.join(ACTION_KINDS)}")
        for dim in self.gripper_dims:
            if not 0 <= dim < self.action_dim:
                raise ValueError(f"{where}: gripper dim {dim} is outside the {self.action_dim} action dims")
        if not np.all(np.asarray(self.minimum_range) > 0):
            raise ValueError(f"{where}: minimum_range must be positive, got {self.minimum_range}")
        if isinstance(self.minimum_range, list) and len(self.minimum_range) != self.action_dim:
            raise ValueError(
                f"{where}: {len(self.minimum_range)} minimum_range entries for {self.action_dim} action dims"
            )
        for label, statistics, dim in (
            ("action", self.action_statistics, self.action_dim),
            ("state", self.state_statistics, self.state_dim),
        ):
            if statistics is not None and statistics.dim != dim:
                raise ValueError(f"{where}: {label}_statistics have {statistics.dim} dims, the {label} has {dim}")

    @property
    def action_dim(self) -> int:
        return len(self.action_names)

    @property
    def state_dim(self) -> int:
        return len(self.state_names)

    def normalize_actions(self, actions: ArrayLike) -> NDArray[np.float32]:
        """Raw actions (..., action_dim) to the model's units.

        Raises ValueError on other dims or a value that is not finite.
        """
        center, scale = self._affine("action")
        return ((self._checked(actions, "action") - center) / scale).astype(np.float32)

    def denormalize_actions(self, actions: ArrayLike) -> NDArray[np.float32]:
        """The inverse of `normalize_actions`."""
        center, scale = self._affine("action")
        return (self._checked(actions, "action") * scale + center).astype(np.float32)

    def normalize_state(self, state: ArrayLike) -> NDArray[np.float32]:
        """Raw proprioceptive state (..., state_dim) to the model's units; errors as `normalize_actions`."""
        center, scale = self._affine("state")
        return ((self._checked(state, "state") - center) / scale).astype(np.float32)

    def with_statistics(self, states: ArrayLike, actions: ArrayLike) -> Embodiment:
        """A copy whose statistics are those of `states` (N, state_dim) and `actions` (N, action_dim)."""
        return replace(
            self,
            action_statistics=FeatureStatistics.from_values(self._checked(actions, "action")),
            state_statistics=FeatureStatistics.from_values(self._checked(states, "state")) if self.state_dim else None,
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Embodiment:
        """The inverse of `to_dict`. Raises ValueError naming a key that is unknown or missing."""
        name = values.get("name", "?")
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(f"embodiment {name!r}: unknown key {unknown[0]!r}")
        missing = [key for key in ("name", "action_names", "state_names", "control_rate") if key not in values]
        if missing:
            raise ValueError(f"embodiment {name!r}: key {missing[0]!r} is missing")
        values = dict(values)
        for key in ("action_statistics", "state_statistics"):
            if values.get(key) is not None:
                values[key] = FeatureStatistics(**values[key])
        return cls(**values)

    def _affine(self, label: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        mode: NormalizationMode = getattr(self, f"{label}_normalization")
        dim: int = getattr(self, f"{label}_dim")
        statistics: FeatureStatistics | None = getattr(self, f"{label}_statistics")
        if mode is NormalizationMode.IDENTITY or dim == 0:
            return np.zeros(dim), np.ones(dim)
        if statistics is None:
            raise ValueError(
                f"embodiment {self.name!r} has no {label}_statistics, which {label}_normalization={mode.value!r} "
                "needs: fit them with with_statistics(states, actions), or use 'identity'"
            )
        minimum_range = self.minimum_range
        if label == "state" and isinstance(minimum_range, list):
            minimum_range = min(minimum_range)
        return statistics.affine(mode, minimum_range)

    def _checked(self, values: ArrayLike, label: str) -> NDArray[np.float64]:
        array = np.asarray(values, dtype=np.float64)
        dim = getattr(self, f"{label}_dim")
        if array.ndim == 0 or array.shape[-1] != dim:
            got = "a scalar" if array.ndim == 0 else f"{array.shape[-1]} {label} dims"
            raise ValueError(f"embodiment {self.name!r} has {dim} {label} dims, got {got} (shape {array.shape})")
        _require_finite(array, f"embodiment {self.name!r}: {label}", getattr(self, f"{label}_names"))
        return array


def save_embodiments(embodiments: Sequence[Embodiment], folder: str | Path) -> Path:
    """Writes `embodiments.json` into `folder`; the order is the models' embodiment id. Returns the file's path."""
    path = Path(folder) / EMBODIMENTS_FILE
    content = {"version": EMBODIMENTS_VERSION, "embodiments": [embodiment.to_dict() for embodiment in embodiments]}
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def load_embodiments(file: str | Path) -> list[Embodiment]:
    """Reads an `embodiments.json` (the file, or a folder that holds one). Raises ValueError naming file and key."""
    path = Path(file)
    path = path / EMBODIMENTS_FILE if path.is_dir() else path
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["version"] != EMBODIMENTS_VERSION:
            raise ValueError(f"version {content['version']!r} is not {EMBODIMENTS_VERSION}: update priorvla")
        return [Embodiment.from_dict(values) for values in content["embodiments"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a valid list of embodiments: {error}") from error


def _require_finite(array: NDArray[np.float64], what: str, names: Sequence[str] | None = None) -> None:
    if np.isfinite(array).all():
        return
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
    dim = names[index[-1]] if names is not None else index[-1]
    raise ValueError(f"{what} is {array[index]} at index {index} (dim {dim!r}): values must be finite")
