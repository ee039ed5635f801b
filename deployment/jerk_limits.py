"""Motion of bounded speed and jerk towards targets that come one a control step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class JerkLimiter:
    """Moves each dim towards its target as fast as speed and jerk allow, without overshooting one that stays.

    The library ruckig plans the way anew at every step: to clamp third differences one by one would overshoot and
    swing. The target's own speed is aimed at too, so that a motion well within the limits is followed as it is.

    Args:
        start (n,): where the dims are, at rest.
        max_rate (n,), max_jerk (n,): units a second (may be infinite), and a second cubed.
        step: seconds of a control step.

    Raises:
        ImportError: when ruckig is not installed.
    """

    def __init__(
        self, start: NDArray[np.float64], max_rate: NDArray[np.float64], max_jerk: NDArray[np.float64], step: float
    ) -> None:
        try:
            import ruckig
        except ImportError as error:
            raise ImportError("limits on jerk need ruckig: run pip install 'priorvla[runtime]'") from error
        self._ruckig: Any = ruckig
        self._planner = ruckig.Ruckig(1)
        self._max_rate, self._max_jerk, self._step = max_rate, max_jerk, step
        self._motion = np.stack([start, np.zeros_like(start), np.zeros_like(start)])  # place, speed, acceleration
        self._target = start

    def move(self, target: NDArray[np.float64], still: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Where the dims are a step later. `still` (n,): where the target is not going on, whatever it did before."""
        speed = np.where(still, 0.0, (target - self._target) / self._step)
        speed = np.clip(speed, -self._max_rate, self._max_rate)
        self._target = target
        for dim in range(len(target)):
            self._motion[:, dim] = self._towards(dim, target[dim], speed[dim])
        return self._motion[0].copy()

    def stop_at(self, place: NDArray[np.float64], dims: NDArray[np.bool_]) -> None:
        """What a harder limit has decided: these dims are at `place`, at rest."""
        self._motion[0] = np.where(dims, place, self._motion[0])
        self._motion[1:, dims] = 0.0

    def _towards(self, dim: int, target: float, speed: float) -> tuple[float, float, float]:
        """Place, speed and acceleration a step along the fastest way to the target."""
        plan = self._ruckig.InputParameter(1)
        place, velocity, acceleration = self._motion[:, dim]
        plan.current_position, plan.current_velocity, plan.current_acceleration = [place], [velocity], [acceleration]
        plan.target_position, plan.target_velocity = [target], [speed]
        plan.max_velocity, plan.max_jerk, plan.max_acceleration = [self._max_rate[dim]], [self._max_jerk[dim]], [np.inf]
        trajectory = self._ruckig.Trajectory(1)
        result = self._planner.calculate(plan, trajectory)
        if result not in (self._ruckig.Result.Working, self._ruckig.Result.Finished):
            raise RuntimeError(f"no way from {place:g} to {target:g} was found within the limits ({result})")
        if trajectory.duration <= self._step:
            return target, speed, 0.0
        (place,), (velocity,), (acceleration,) = trajectory.at_time(self._step)
        return place, velocity, acceleration


__all__ = ["JerkLimiter"]
