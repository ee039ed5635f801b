"""Motion of bounded speed and jerk towards targets that come one a control step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

EXACT = 1e-9  # seconds


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
        require_ruckig()
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

    def stop(self) -> NDArray[np.float64]:
        """Where the dims are a step later, when they come to rest as soon as they can, wherever that is."""
        library = require_ruckig()
        for dim in range(self._motion.shape[1]):
            plan = self._plan(dim, library)
            plan.control_interface = library.ControlInterface.Velocity
            plan.target_velocity = [0.0]
            self._motion[:, dim] = self._after_a_step(plan, library)[0]
        self._target = self._motion[0].copy()
        return self._motion[0].copy()

    def stop_at(self, place: NDArray[np.float64], dims: NDArray[np.bool_]) -> None:
        """What a harder limit has decided: these dims are at `place`, at rest."""
        self._motion[0] = np.where(dims, place, self._motion[0])
        self._motion[1:, dims] = 0.0

    def _towards(self, dim: int, target: float, speed: float) -> NDArray[np.float64]:
        """Place, speed and acceleration a step along the fastest way to the target."""
        library = require_ruckig()
        plan = self._plan(dim, library)
        plan.target_position, plan.target_velocity = [target], [speed]
        motion, seconds = self._after_a_step(plan, library)
        if seconds >= self._step:
            return motion
        plan.minimum_duration = self._step  # it would be there early, and go past
        exactly, seconds = self._after_a_step(plan, library)
        return exactly if abs(seconds - self._step) < EXACT else motion

    def _plan(self, dim: int, library: Any) -> Any:
        plan = library.InputParameter(1)
        place, velocity, acceleration = self._motion[:, dim]
        plan.current_position, plan.current_velocity, plan.current_acceleration = [place], [velocity], [acceleration]
        plan.max_velocity, plan.max_jerk, plan.max_acceleration = [self._max_rate[dim]], [self._max_jerk[dim]], [np.inf]
        return plan

    def _after_a_step(self, plan: Any, library: Any) -> tuple[NDArray[np.float64], float]:
        """Place, speed and acceleration, and the seconds that the whole way takes."""
        trajectory = library.Trajectory(1)
        result = library.Ruckig(1).calculate(plan, trajectory)
        if result not in (library.Result.Working, library.Result.Finished):
            raise RuntimeError(f"no way within the limits was found from {plan.current_position[0]:g} ({result})")
        return np.array(trajectory.at_time(self._step))[:, 0], trajectory.duration


def require_ruckig() -> Any:
    """The library. Raises ImportError when it is not installed."""
    try:
        import ruckig
    except ImportError as error:
        raise ImportError("limits on jerk need ruckig: run pip install 'priorvla[runtime]'") from error
    return ruckig


__all__ = ["JerkLimiter", "require_ruckig"]
