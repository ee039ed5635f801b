"""A scripted expert for ALOHA's two tasks, of our own: hand poses, solved for the joints, joined by smooth motion.

An episode is planned once, from where the objects lay when it started. Each phase of the plan says where both hands
are at its end; in between every joint moves along a minimum-jerk curve. Hands point away from their arm's base and stay
in the vertical plane through it: what they grasp turns with them and comes straight when they meet. Only the hand that
takes over the cube is rolled by a quarter turn: its fingers close above and below the cube, the giver's beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inverse_kinematics import ArmKinematics

Vector = NDArray[np.float64]

CONTROL_RATE = 50.0  # Hz
ARM_JOINTS = ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate")
BASES = {"left": np.array([-0.469, 0.5]), "right": np.array([0.469, 0.5])}  # m
SITE_AHEAD = 0.01  # m, from where the fingers hold to the site near their tips that is moved
OPEN, CLOSED = 1.0, 0.0
PICK_PITCH = np.deg2rad(60)
QUARTER_TURN = np.pi / 2
TEMPO = (0.85, 1.15)  # an episode's phases last their durations times a number drawn from here
MEETING_JITTER = 0.02  # m


@dataclass(frozen=True)
class HandPose:
    """Where a hand's fingers hold (m), how far it points down (`pitch`) and is rolled (rad), and its opening (0-1)."""

    point: Vector
    pitch: float = PICK_PITCH
    roll: float = 0.0
    opening: float = OPEN

    def moved(self, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> HandPose:
        return replace(self, point=self.point + np.array([x, y, z]))

    def closed(self) -> HandPose:
        return replace(self, opening=CLOSED)


@dataclass(frozen=True)
class Phase:
    """Both hands' poses at the end of `duration` seconds."""

    duration: float
    left: HandPose
    right: HandPose


class AlohaExpert:
    """Plans and plays one episode after the other.

    Args:
        physics: gym-aloha's scene; it is read, never changed.
        task: `transfer_cube` or `insertion`.
    """

    def __init__(self, physics: Any, task: str) -> None:
        self._physics = physics
        self._phases = _transfer_phases if task == "transfer_cube" else _insertion_phases
        self._arms = {
            side: ArmKinematics(physics, f"cali_{side}_site1", [f"vx300s_{side}/{joint}" for joint in ARM_JOINTS])
            for side in BASES
        }

    def begin(self, start: Vector, random: np.random.Generator) -> None:
        """An episode begins with the joints `start` (14,); `random` will draw tempo and meeting point.

        It is planned when its first action is asked for: a policy that is evaluated needs no plan.
        """
        self._start, self._random = start, random
        self._objects = np.array(self._physics.data.qpos[16:]).reshape(-1, 7)[:, :3]
        self._times: Vector | None = None

    def _plan(self) -> Vector:
        """Fills `_targets` and returns when, in seconds, each is to be reached."""
        phases = self._phases(self._objects, self._random)
        targets = [self._start]
        for phase in phases:
            left = self._solve("left", phase.left, targets[-1][:6])
            right = self._solve("right", phase.right, targets[-1][7:13])
            targets.append(np.concatenate([left, right]))
        self._targets = np.stack(targets)
        tempo = self._random.uniform(*TEMPO)
        return np.concatenate([[0.0], np.cumsum([tempo * phase.duration for phase in phases])])

    def action(self, step: int) -> Vector:
        """Targets (14,) of joints and grippers at control step `step`; after the plan's end, its last ones.

        Raises OutOfReachError where an arm cannot reach what lies too far away.
        """
        if self._times is None:
            self._times = self._plan()
        times = self._times
        time = min((step + 1) / CONTROL_RATE, times[-1])
        phase = int(np.searchsorted(times, time)) - 1
        part = (time - times[phase]) / (times[phase + 1] - times[phase])
        eased = part**3 * (10 - 15 * part + 6 * part**2)
        target: Vector = self._targets[phase] + eased * (self._targets[phase + 1] - self._targets[phase])
        return target

    def _solve(self, side: str, pose: HandPose, start: Vector) -> Vector:
        towards = pose.point[:2] - BASES[side]
        yaw = np.arctan2(towards[1], towards[0])
        rotation = _about(2, yaw) @ _about(1, pose.pitch) @ _about(0, pose.roll)
        joints = self._arms[side].solve(pose.point + SITE_AHEAD * rotation[:, 0], rotation, start)
        return np.append(joints, pose.opening)


def _transfer_phases(objects: Vector, random: np.random.Generator) -> list[Phase]:
    cube = HandPose(np.array([*objects[0, :2], 0.02]))
    meeting = np.array([0.0, 0.5, 0.25]) + random.uniform(-MEETING_JITTER, MEETING_JITTER, 3)
    along = np.array([0.003, 0.0, 0.0])
    give = HandPose(meeting + along, opening=CLOSED)
    take = HandPose(meeting - along, pitch=0.0, roll=QUARTER_TURN)
    wait = take.moved(x=-0.12)
    return [
        Phase(1.0, wait, cube.moved(z=0.1)),
        Phase(0.7, wait, cube),
        Phase(0.2, wait, cube),
        Phase(0.5, wait, cube.closed()),
        Phase(0.5, wait, cube.moved(z=0.12).closed()),
        Phase(0.9, wait, give),
        Phase(0.8, take, give),
        Phase(0.5, take.closed(), give),
        Phase(0.4, take.closed(), replace(give, opening=OPEN)),
        Phase(0.5, take.closed(), replace(give, opening=OPEN).moved(x=0.06, z=0.1)),
        Phase(0.5, take.moved(x=-0.08).closed(), replace(give, opening=OPEN).moved(x=0.12, z=0.1)),
    ]


def _insertion_phases(objects: Vector, random: np.random.Generator) -> list[Phase]:
    peg = HandPose(np.array([*objects[0, :2], 0.02]))
    socket = HandPose(np.array([*objects[1, :2], 0.02]))
    meeting = np.array([0.0, 0.5, 0.2]) + random.uniform(-MEETING_JITTER, MEETING_JITTER, 3)
    apart = np.array([0.1, 0.0, 0.0])
    right = HandPose(meeting + apart + np.array([0.0, 0.0, 0.011]), opening=CLOSED)
    left = HandPose(meeting - apart, opening=CLOSED)
    return [
        Phase(1.0, socket.moved(z=0.1), peg.moved(z=0.1)),
        Phase(0.7, socket, peg),
        Phase(0.2, socket, peg),
        Phase(0.5, socket.closed(), peg.closed()),
        Phase(0.6, socket.moved(z=0.12).closed(), peg.moved(z=0.12).closed()),
        Phase(1.0, left, right),
        Phase(0.3, left, right),
        Phase(1.2, left.moved(x=0.055), right.moved(x=-0.055)),
        Phase(0.5, left.moved(x=0.055), right.moved(x=-0.055)),
    ]


def _about(axis: int, angle: float) -> Vector:
    """The rotation matrix (3, 3) about a coordinate axis."""
    matrix = np.eye(3)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    matrix[first, first] = matrix[second, second] = np.cos(angle)
    matrix[second, first] = np.sin(angle)
    matrix[first, second] = -np.sin(angle)
    return matrix


__all__ = ["AlohaExpert"]
