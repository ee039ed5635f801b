"""Joint angles that bring a robot's hand to a pose: dm_control's damped least squares, with our limits and errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np
from dm_control.utils.inverse_kinematics import qpos_from_site_pose
from numpy.typing import ArrayLike, NDArray

from .registry import OutOfReachError

TOLERANCE = 1e-4  # metres and radians together
MOST_STEPS = 300


class ArmKinematics:
    """Solves for the joints of one arm on a copy of the simulation, which stays as it is.

    Args:
        physics: a `dm_control.mujoco.Physics`.
        site: the site that is to be moved, fixed to the hand.
        joints: names of the arm's hinge joints, from the base to the hand.
    """

    def __init__(self, physics: Any, site: str, joints: Sequence[str]) -> None:
        self._physics = physics.copy(share_model=True)
        self._site = site
        self._joints = list(joints)
        self._limits = physics.named.model.jnt_range[self._joints]

    def solve(self, position: ArrayLike, rotation: ArrayLike, start: ArrayLike) -> NDArray[np.float64]:
        """The joint angles (rad) near `start` at which the site is at `position` (3,), turned by `rotation` (3, 3).

        Raises OutOfReachError where the arm cannot reach it within its limits.
        """
        target, quaternion = np.asarray(position, dtype=np.float64), np.empty(4)
        mujoco.mju_mat2Quat(quaternion, np.asarray(rotation, dtype=np.float64).reshape(-1))
        self._physics.named.data.qpos[self._joints] = np.asarray(start)
        result = qpos_from_site_pose(
            self._physics,
            self._site,
            target,
            quaternion,
            joint_names=self._joints,
            tol=TOLERANCE,
            max_steps=MOST_STEPS,
            inplace=True,
        )
        angles = np.array(self._physics.named.data.qpos[self._joints])
        inside = (angles > self._limits[:, 0]).all() and (angles < self._limits[:, 1]).all()
        if not (result.success and inside):
            raise OutOfReachError(
                f"{self._site} cannot be brought to {target.round(3).tolist()}, turned by the quaternion "
                f"{quaternion.round(3).tolist()}: off by {result.err_norm:.4f} with joints {angles.round(2).tolist()}"
            )
        return angles


__all__ = ["ArmKinematics"]
