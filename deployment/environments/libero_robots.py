"""The arms that LIBERO's scenes can be played with: its own Panda, and three more that robosuite describes.

All carry the Panda's gripper, so that one table of grasps serves them, and start with their hand where the Panda's
starts. Importing this file registers the arms with robosuite under the names that LIBERO's scenes ask for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...configuration.embodiment import Embodiment, NormalizationMode
from ...configuration.rotations import RotationGroup
from .libero_package import IIWA, ROBOT_CLASS_MAPPING, Kinova3, MountedPanda, OnTheGroundPanda, SingleArm, UR5e

CONTROL_RATE = 20.0  # Hz: 25 physics steps of 2 ms an action
CAMERAS = {"agentview": "agentview", "wrist": "robot0_eye_in_hand"}  # ours: robosuite's
ACTION_SPACES = ("eef", "joint")
POSITION_REACH = 0.05  # m ahead of the hand at which one unit of an end-effector action puts its goal (LIBERO's value)
ROTATION_REACH = 0.5  # rad, likewise
PEDESTAL = 0.912  # m: height of the Panda's; the other arms stand on nothing, for a pedestal would meet the stove


@dataclass(frozen=True)
class Arm:
    """One arm.

    Args:
        scene_name: what LIBERO's scenes put `Mounted` or `OnTheGround` before.
        num_joints: joints of the arm.
        robot: robosuite's description; None for LIBERO's own arm, which is registered already.
        shift: where its base stands from where the Panda's stands (m). On the Panda's place forearms come to rest on
            libero_spatial's cabinet (the UR5e's hangs to its right) and elbows stretch.
        start: joint positions (rad) at the start of an episode: the Panda's hand pose, by inverse kinematics from
            robosuite's own start (ours).
    """

    scene_name: str
    num_joints: int
    robot: Any = None
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    start: tuple[float, ...] = ()


ARMS = {
    "panda": Arm("Panda", 7),
    "iiwa": Arm("IIWA", 7, IIWA, (0.1, 0.0, 0.22), (0.0, 0.6925, 0.0, -2.1737, 0.0, 0.3321, 0.0)),
    "ur5e": Arm("UR5e", 6, UR5e, (0.1, 0.2, 0.22), (-0.8336, -1.3498, 2.3889, -2.5717, -1.6128, -2.4040)),
    "kinova3": Arm(
        "Kinova3", 7, Kinova3, (0.1, 0.0, 0.22), (-0.0662, 0.6950, -0.0022, 2.1347, -0.0067, 0.3686, -1.6319)
    ),
}


def libero_embodiment(robot: str, action_space: str) -> Embodiment:
    """The body that `LiberoEnv(robot=..., action_space=...)` drives, named for example `libero_ur5e_joint`.

    `eef`: actions as in LIBERO's own demonstrations, 7 numbers in [-1, 1] that need no normalisation. The first six
    displace the controller's goal from where the hand is now (5 cm and 0.5 rad a unit, in the world's axes; kind
    `delta`). `gripper`: +1 closes, -1 opens. The state is that of LIBERO's demonstrations too: the hand's position (m)
    and axis-angle (rad), in the world, and the two fingers' positions (m).
    `joint`: actions are joint targets (rad) and `gripper` as above, the state is the joints' positions (rad) and the
    gripper's opening (m).
    """
    name = f"libero_{robot}_{action_space}"
    joints = [f"joint{index + 1}" for index in range(ARMS[robot].num_joints)]
    if action_space == "eef":
        return Embodiment(
            name=name,
            action_names=["dx", "dy", "dz", "rotation_x", "rotation_y", "rotation_z", "gripper"],
            state_names=["x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "left_finger", "right_finger"],
            control_rate=CONTROL_RATE,
            action_kinds=["delta"] * 6 + ["absolute"],
            gripper_dims=[6],
            cameras=list(CAMERAS),
            rotations=[RotationGroup([], [3, 4, 5], "axis_angle")],
            action_normalization=NormalizationMode.IDENTITY,
        )
    return Embodiment(
        name=name,
        action_names=[*joints, "gripper"],
        state_names=[*joints, "gripper_width"],
        control_rate=CONTROL_RATE,
        gripper_dims=[len(joints)],
        cameras=list(CAMERAS),
        minimum_range=[0.05] * len(joints) + [0.01],
    )


def _register(arm: Arm) -> None:
    """Makes robosuite know `Mounted<arm>` and `OnTheGround<arm>`, near the Panda's places in LIBERO's scenes."""
    for prefix, panda, height in (("Mounted", MountedPanda, PEDESTAL), ("OnTheGround", OnTheGroundPanda, 0.0)):
        name = prefix + arm.scene_name
        members = {
            "default_mount": _constant(None),
            "default_gripper": _constant("PandaGripper"),
            "init_qpos": _constant(np.array(arm.start)),
            "base_xpos_offset": property(_shifted_places(panda, np.add(arm.shift, [0.0, 0.0, height]))),
        }
        type(arm.robot)(name, (arm.robot,), members)  # robosuite's metaclass files the class under its name
        ROBOT_CLASS_MAPPING[name] = SingleArm


def _constant(value: Any) -> property:
    return property(lambda self: value)


def _shifted_places(panda: Any, shift: NDArray[np.float64]) -> Callable[[Any], dict[str, Any]]:
    """The Panda's places in the scenes (a point, or a function of the table's length), shifted."""

    def places(self: Any) -> dict[str, Any]:
        return {
            scene: (lambda length, of=place: tuple(of(length) + shift)) if callable(place) else tuple(place + shift)
            for scene, place in panda.base_xpos_offset.fget(self).items()
        }

    return places


for _arm in ARMS.values():
    if _arm.robot is not None:
        _register(_arm)


__all__ = [
    "ACTION_SPACES",
    "ARMS",
    "CAMERAS",
    "CONTROL_RATE",
    "POSITION_REACH",
    "ROTATION_REACH",
    "Arm",
    "libero_embodiment",
]
