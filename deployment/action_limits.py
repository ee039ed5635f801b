"""What a robot may be told: limits on commands, on their speed and jerk, and what to do without a command."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..configuration.action_transforms import dims_of_the_same_name
from ..configuration.embodiment import Embodiment
from .command_counts import CommandCounts
from .jerk_limits import JerkLimiter, require_ruckig

Limit = float | Sequence[float | None] | None

BOUNDS = ("low", "high", "max_rate", "max_jerk")
# What datasets call dims that have no names: that action and state both have a `dim_0` says nothing.
MADE_UP_NAME = re.compile(r"((dim|action|state|motor)s?_?)?\d+")


@dataclass(frozen=True)
class ActionLimits:
    """Limits in raw action units, a number for all dims or one a dim; None is no limit.

    Where two cannot be kept at once, `low` and `high` win over `max_jerk` (our choice: the workspace first). A robot
    that is outside of them comes back no faster than `max_rate`.

    Args:
        low, high: of a command.
        max_rate: of its change, units a second. Of a dim that was recorded as `delta`, the command is the change.
        max_jerk: of the third difference, units a second cubed.
        start: one entry an action dim, the name of the state dim that tells where it is before an episode's first
            command; null: nothing does, and that command may be anywhere in range. Only asked of absolute dims with a
            `max_rate` or `max_jerk`. Default: the state of the same name, but for grippers, whose command and opening
            are seldom the same quantity, and for names that say nothing (`dim_0`).

    A second is a second of the body's `control_rate`: whoever sends commands twice as often has twice the speed.

    Raises:
        ValueError: on a limit that is no number, a rate or jerk that is not positive, or a start that is no list of
            names.
    """

    low: Limit = None
    high: Limit = None
    max_rate: Limit = None
    max_jerk: Limit = None
    start: Sequence[str | None] | None = None

    def __post_init__(self) -> None:
        if self.start is not None and not (
            isinstance(self.start, list | tuple) and all(isinstance(name, str | None) for name in self.start)
        ):
            raise ValueError(f"start {self.start!r} is no list of names of state dims (or null), one an action dim")
        for name in BOUNDS:
            for value in _listed(getattr(self, name)):
                if value is None:
                    continue
                if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
                    raise ValueError(f"{name} {value!r} is no finite number (no limit is null)")
                if name.startswith("max") and not value > 0:
                    raise ValueError(f"{name} {value} must be positive")

    @classmethod
    def from_file(cls, file: str | Path, body: Embodiment) -> Self:
        """The limits of `body` in a YAML or JSON file, which has these keys, or such a mapping by body's name.

        Raises as `read_action_limits`, and ValueError naming file and body when it says nothing of it, or what does not
        fit it.
        """
        by_body = read_action_limits(file)
        limits = by_body.get(None, by_body.get(body.name))
        if limits is None:
            names = ", ".join(map(repr, by_body))
            raise ValueError(
                f"{file} has limits of {names} and none of {body.name!r}: add `{body.name}: {{}}` for none"
            )
        try:
            limits.arrays(body)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        return cls(**{entry.name: getattr(limits, entry.name) for entry in fields(cls)})

    @classmethod
    def of_data(cls, body: Embodiment, margin: float = 0.05) -> Self:
        """The range of the commands in the body's data, wider by `margin` of it on both sides.

        Raises ValueError when the body has no statistics, or learns other numbers than its commands.
        """
        statistics = body.action_statistics
        if statistics is None or list(body.learned_kinds) != list(body.action_kinds) or body.rotations:
            raise ValueError(
                f"embodiment {body.name!r} has no statistics of its commands themselves: give low and high by hand"
            )
        low, high = np.asarray(statistics.min), np.asarray(statistics.max)
        room = margin * (high - low)
        return cls(low=(low - room).tolist(), high=(high + room).tolist())

    def arrays(self, body: Embodiment) -> dict[str, NDArray[np.float64]]:
        """Each limit as an array (D_robot,), infinite where there is none.

        Raises ValueError when one does not fit the body: another length, `low` above `high`, a rate or jerk of a dim
        that is part of a rotation or recorded relative to the state, whose differences are no speed, or one of a dim of
        which nobody says where it is before the first command (`starts`).
        """
        found = {name: _array(getattr(self, name), body, name, -np.inf if name == "low" else np.inf) for name in BOUNDS}
        turned = {dim for group in body.rotations for dim in group.action_dims}
        for dim, name in enumerate(body.action_names):
            if found["low"][dim] > found["high"][dim]:
                raise ValueError(f"{name}: low {found['low'][dim]:g} is above high {found['high'][dim]:g}")
            for limit in ("max_rate", "max_jerk"):
                if np.isfinite(found[limit][dim]) and (dim in turned or body.action_kinds[dim] == "relative"):
                    what = "part of a rotation" if dim in turned else "relative to the state at a chunk's start"
                    raise ValueError(f"{name} is {what}, so that its differences are no speed: set its {limit} to null")
        self._require_starts(body, found)
        return found

    def starts(self, body: Embodiment) -> list[int | None]:
        """Per action dim the state dim that tells where it is before the first command, None where none does.

        Raises ValueError when `start` has another length, or a name that is no state dim of `body`.
        """
        if self.start is None:
            same = dims_of_the_same_name(body.action_names, body.state_names)
            unlike = [
                dim in body.gripper_dims or MADE_UP_NAME.fullmatch(own) for dim, own in enumerate(body.action_names)
            ]
            return [None if other else dim for dim, other in zip(same, unlike, strict=True)]
        if len(self.start) != body.action_dim:
            raise ValueError(f"start has {len(self.start)} names, {body.name!r} has {body.action_dim} action dims")
        found = dims_of_the_same_name(self.start, body.state_names)
        for name, dim in zip(self.start, found, strict=True):
            if name is not None and dim is None:
                known = ", ".join(body.state_names) or "none"
                raise ValueError(f"start: {name!r} is no state dim of {body.name!r}, which has {known}")
        return found

    def by_dim(self, body: Embodiment) -> dict[str, list[Any]]:
        """The limits that there are, one entry an action dim of `body` and None where there is none, as JSON.

        Raises as `arrays`.
        """
        listed: dict[str, list[Any]] = {
            name: [float(value) if np.isfinite(value) else None for value in values]
            for name, values in self.arrays(body).items()
        }
        told = {name: values for name, values in listed.items() if any(value is not None for value in values)}
        return told if self.start is None else {**told, "start": list(self.start)}

    def _require_starts(self, body: Embodiment, found: Mapping[str, NDArray[np.float64]]) -> None:
        starts = self.starts(body)
        moving = np.isfinite(found["max_rate"]) | np.isfinite(found["max_jerk"])
        if self.start is not None:
            return
        for dim, name in enumerate(body.action_names):
            if moving[dim] and starts[dim] is None and body.action_kinds[dim] != "delta":
                known = ", ".join("null" if at is None else body.state_names[at] for at in starts)
                raise ValueError(
                    f"{name} has a max_rate or max_jerk, and nothing says where it is before the first command: set "
                    "both to null for it, or name the state dim that tells, null where that command may be anywhere, "
                    f"as in start: [{known}] (state dims of {body.name!r}: {', '.join(body.state_names) or 'none'})"
                )


def read_action_limits(file: str | Path) -> dict[str | None, ActionLimits]:
    """The limits in a YAML or JSON file by embodiment's name; under None where it names no embodiment.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: naming file, embodiment, key and value: no mapping, an unknown key, or what is no limit.
    """
    from ..configuration.recipe import read_yaml, require_known  # a robot's computer has no YAML

    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} does not exist: name a YAML or JSON file with limits of actions")
    content, keys = read_yaml(Path(file)), [entry.name for entry in fields(ActionLimits)]
    wanted = f"a mapping of {', '.join(keys)}"
    if not isinstance(content, Mapping):
        raise ValueError(f"{file}: limits are {wanted}, or one by embodiment's name, found {type(content).__name__}")
    named = any(isinstance(value, Mapping) for value in content.values())
    limits: dict[str | None, ActionLimits] = {}
    for name, own in content.items() if named else [(None, content)]:
        where = str(file) if name is None else f"{file}: {name}"
        if not isinstance(own, Mapping):
            raise ValueError(
                f"{where} is {own!r}: beside embodiments' names there is nothing else, and each has {wanted}"
            )
        require_known(own, keys, where)
        try:
            limits[None if name is None else str(name)] = ActionLimits(**own)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    return limits


class ActionGuard:
    """Keeps the commands of one episode within `ActionLimits`; it remembers where they led, so one guards one episode.

    Args:
        limits: None: only what is not finite is refused.
        body: whose commands. Raises as `ActionLimits.arrays`, and ImportError when jerk is limited without ruckig.
    """

    def __init__(self, limits: ActionLimits | None, body: Embodiment) -> None:
        self.body = body
        limits = limits or ActionLimits()
        self._limits = limits.arrays(body)
        self._seconds = 1 / body.control_rate
        self._delta = np.array([kind == "delta" for kind in body.action_kinds])
        moving = (np.isfinite(self._limits["max_rate"]) | np.isfinite(self._limits["max_jerk"])) & ~self._delta
        starts = limits.starts(body)
        self._starts = {dim: at for dim in np.flatnonzero(moving).tolist() if (at := starts[dim]) is not None}
        self._smooth = np.isfinite(self._limits["max_jerk"])
        if self._smooth.any():
            require_ruckig()
        self._limiter: JerkLimiter | None = None
        self._place: NDArray[np.float64] | None = None  # the last target; of displacements their sum
        self.counts = CommandCounts()

    @property
    def started(self) -> bool:
        """Whether there was a command."""
        return self._place is not None

    def apply(self, action: ArrayLike, state: ArrayLike | None = None) -> NDArray[np.float32]:
        """The command (D_robot,) to send: `action`, as far as it is allowed.

        Args:
            state: raw, (S_robot,): where absolute dims are before the first command of an episode
                (`ActionLimits.start`); not looked at later.

        Raises:
            ValueError: when the action has other dims, or a value that is not finite, or the state does not tell where
                a dim is that is limited in speed or jerk. Nothing is changed then.
        """
        wanted = np.asarray(action, dtype=np.float64)
        if wanted.shape != (self.body.action_dim,):
            raise ValueError(f"action has shape {wanted.shape}, {self.body.name!r} takes ({self.body.action_dim},)")
        if not np.isfinite(wanted).all():
            dims = [name for name, value in zip(self.body.action_names, wanted, strict=True) if not np.isfinite(value)]
            raise ValueError(f"action is not finite in {', '.join(dims)}: it is not sent")
        before = self._start(state) if self._place is None else self._place
        allowed = np.clip(wanted, self._limits["low"], self._limits["high"])
        target = np.where(self._delta, before + allowed, allowed)
        rate = self._limits["max_rate"] * self._seconds
        slowed = np.where(np.isfinite(before), np.clip(target, before - rate, before + rate), target)
        place = slowed
        if self._smooth.any():
            place = self._smoothed(slowed, target, before, still=allowed != wanted)
        command = self._within(place, before)
        with np.errstate(over="ignore"):
            sent = command.astype(np.float32)
        if not np.isfinite(sent).all():
            raise ValueError(f"action {wanted.tolist()} is beyond what a float32 holds: it is not sent")
        self._advance(np.where(self._delta, before + command, command), place)
        if _differ(command, wanted):
            stages = [np.where(self._delta, stage - before, stage) for stage in (target, slowed, place)]
            self.counts.clamped += 1
            self.counts.by_range += _differ(allowed, wanted) or _differ(command, stages[2])
            self.counts.by_rate += _differ(stages[1], stages[0])
            self.counts.by_jerk += _differ(stages[2], stages[1])
        return sent

    def hold(self) -> NDArray[np.float32]:
        """The command that stops the robot: the last target, no displacement; where jerk is limited, as soon as it may.

        Raises ValueError before the first command, when some dim is a target: nobody knows which.
        """
        if self._place is None and not self._delta.all():
            raise ValueError(f"{self.body.name!r} has had no command yet, so that there is none to hold")
        self.counts.held += 1
        if self._place is None:
            return np.zeros(self.body.action_dim, dtype=np.float32)
        before, place = self._place, self._place.copy()
        if self._limiter is not None:
            place[self._smooth] = self._limiter.stop()
        command = self._within(place, before)
        self._advance(np.where(self._delta, before + command, command), place)
        return command.astype(np.float32)

    def copy(self) -> ActionGuard:
        """One that goes on from here by itself: to see what commands would become of actions."""
        twin = copy.copy(self)
        twin.counts = copy.copy(self.counts)
        twin._limiter = copy.deepcopy(self._limiter)  # all else is replaced and never changed in place
        return twin

    def _within(self, place: NDArray[np.float64], before: NDArray[np.float64]) -> NDArray[np.float64]:
        """The command that leads from `before` to `place`, within `low` and `high`.

        A robot that starts out of range is not sent back there in a single step.
        """
        outside = np.isfinite(before) & ~self._delta
        low = np.where(outside, np.fmin(self._limits["low"], before), self._limits["low"])
        high = np.where(outside, np.fmax(self._limits["high"], before), self._limits["high"])
        return np.clip(np.where(self._delta, place - before, place), low, high)

    def _advance(self, place: NDArray[np.float64], planned: NDArray[np.float64]) -> None:
        """Notes where the command leads, which limits may have made another place than the limiter `planned`."""
        self._place = place
        if self._limiter is not None:
            self._limiter.stop_at(place[self._smooth], (place != planned)[self._smooth])

    def _start(self, state: ArrayLike | None) -> NDArray[np.float64]:
        """Where dims are before the first command; not finite where that makes no difference."""
        before = np.where(self._delta, 0.0, np.nan)
        if not self._starts:
            return before
        values = np.full(self.body.state_dim, np.nan) if state is None else np.asarray(state, dtype=np.float64)
        if values.shape != (self.body.state_dim,):
            raise ValueError(f"state has shape {values.shape}, {self.body.name!r} has ({self.body.state_dim},)")
        for dim, at in self._starts.items():
            before[dim] = values[at]
            if not np.isfinite(before[dim]):
                told = "no state" if state is None else f"a state whose {self.body.state_names[at]} is {values[at]}"
                raise ValueError(
                    f"{told} was given, and the first command's speed or jerk counts from there: give a finite one, or "
                    f"let {self.body.action_names[dim]} begin anywhere (null in the limits' start)"
                )
        return before

    def _smoothed(
        self, place: NDArray[np.float64], target: NDArray[np.float64], before: NDArray[np.float64], still: Any
    ) -> NDArray[np.float64]:
        """`place` where jerk is not limited; elsewhere as far towards `target` as it allows."""
        smooth = self._smooth
        if self._limiter is None:
            start = np.where(np.isfinite(before), before, target)[smooth]
            rate, jerk = (self._limits[name][smooth] for name in ("max_rate", "max_jerk"))
            self._limiter = JerkLimiter(start, rate, jerk, self._seconds)
        moved = place.copy()
        moved[smooth] = self._limiter.move(target[smooth], still[smooth])
        return moved


def _differ(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    return not np.allclose(one, other, rtol=1e-6, atol=1e-9)


def require_single_commands(body: Embodiment) -> None:
    """Raises ValueError where a command says nothing by itself: it was recorded relative to a chunk's start.

    Whoever gets one command a control step does not know when a chunk begins.
    """
    if "relative" in body.action_kinds:
        raise ValueError(
            f"actions of {body.name!r} were recorded relative to the state at a chunk's start, which a driver that "
            "gets one action a step does not know, and which is not one state where chunks overlap: record or convert "
            "them as absolute (they may still be learned relative), or execute whole chunks of predict_chunk yourself"
        )


def _listed(limit: Limit) -> Sequence[float | None]:
    return limit if isinstance(limit, list | tuple) else [limit]  # type: ignore[list-item]  # checked by the caller


def _array(limit: Limit, body: Embodiment, name: str, absent: float) -> NDArray[np.float64]:
    values = list(_listed(limit)) * (body.action_dim if limit is None or isinstance(limit, int | float) else 1)
    if len(values) != body.action_dim:
        raise ValueError(
            f"{name} has {len(values)} numbers, {body.name!r} has {body.action_dim} action dims "
            f"({', '.join(body.action_names)}): give one a dim, or one for all"
        )
    return np.array([absent if value is None else float(value) for value in values], dtype=np.float64)


__all__ = ["ActionGuard", "ActionLimits", "read_action_limits", "require_single_commands"]
