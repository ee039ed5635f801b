"""Scripted pushes for PushT, of our own: choose a side of the T, go round to it, push, look again.

A push is chosen by a small model of what it does: nothing slides on by itself on this table, so that a push of the
distance d at a point r from the centre of mass, along the inward normal n, moves the T by n d / (1 + k) and turns it by
(r x n) (m / I) d / (1 + k), where k = (r x n)^2 m / I (a free body's answer to an impulse that moves the point by d).
Of all sides and distances one of the best few is taken at random: the pushes make progress and still differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

FINGER = 15.0  # radius, pixels
CLEARANCE = 8.0  # between finger and T before a push
DETOUR = 112.0  # the T's corners are at most 76 from its centre of mass: a finger that keeps this far touches none
BORDER = 24.0  # as near to the table's edge as the finger goes
TRAVEL_SPEED = 16.0  # pixels a step of 1/10 s, on the way to a push
PUSH_SPEED = 9.0
DISTANCES = (12.0, 25.0, 50.0, 80.0)
CHOICES = 3  # so many of the best pushes are drawn from
SIDE_JITTER = 4.0  # pixels
ROUNDING = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9  # weights of neighbouring targets

# Where a finger can push the T and which way is inward, in the T's own frame: a bar of 120 x 30 whose upper edge is
# y = 0, under its middle a stem of 30 x 90.
SIDES: tuple[tuple[tuple[float, float], tuple[float, float]], ...] = (
    *(((x, 0.0), (0.0, 1.0)) for x in (-45.0, -25.0, 0.0, 25.0, 45.0)),
    *(((x, 30.0), (0.0, -1.0)) for x in (-40.0, 40.0)),
    ((-60.0, 15.0), (1.0, 0.0)),
    ((60.0, 15.0), (-1.0, 0.0)),
    *(((-15.0, y), (1.0, 0.0)) for y in (65.0, 85.0, 110.0)),
    *(((15.0, y), (-1.0, 0.0)) for y in (65.0, 85.0, 110.0)),
    ((0.0, 120.0), (0.0, -1.0)),
)


@dataclass(frozen=True)
class Push:
    """A straight push: from `start`, where the finger does not touch the T yet, to `stop` (pixels)."""

    start: Vector
    stop: Vector
    error: float


class PushTExpert:
    """Pushes the T of one episode of gym-pusht's environment towards its goal, without end.

    Args:
        simulation: the environment, just reset; it is read, never changed.
        random: draws among good pushes.
    """

    def __init__(self, simulation: Any, random: np.random.Generator) -> None:
        self._simulation = simulation
        self._random = random
        self._targets: list[Vector] = []
        self._next = 0
        self._target = np.asarray(simulation.agent.position, dtype=np.float64)

    def action(self) -> Vector:
        """Where to draw the finger now, (2,) pixels; the same until `advance`."""
        if self._next >= len(self._targets):
            self._targets, self._next = self._plan(), 0
        return self._targets[self._next]

    def advance(self) -> None:
        """One control step has passed."""
        self._target = self.action()
        self._next += 1

    def _plan(self) -> list[Vector]:
        """The targets of the way to the next push and of the push itself."""
        push = self._choose_push()
        centre = self._centre()
        outward = _unit(push.start - push.stop)
        entry = _leave_circle(push.start, outward, centre, DETOUR)
        way = _round_trip(self._target, entry, centre)
        return [
            *_travel([self._target, *way, push.start], TRAVEL_SPEED),
            *_travel([push.start, push.stop], PUSH_SPEED),
        ]

    def _choose_push(self) -> Push:
        pushes = sorted(self._possible_pushes(), key=lambda push: push.error)
        return pushes[int(self._random.integers(min(CHOICES, len(pushes))))]

    def _possible_pushes(self) -> list[Push]:
        block = self._simulation.block
        goal = self._simulation.get_goal_pose_body(self._simulation.goal_pose)
        centre = self._centre()
        shift = np.asarray(goal.local_to_world(block.center_of_gravity), dtype=np.float64) - centre
        turn = _half_turn(goal.angle - block.angle)
        gyration = block.moment / block.mass
        rotation = np.array([[np.cos(block.angle), -np.sin(block.angle)], [np.sin(block.angle), np.cos(block.angle)]])
        pushes = []
        for point, inward in SIDES:
            normal = rotation @ inward
            along = self._random.uniform(-SIDE_JITTER, SIDE_JITTER) * np.array([-normal[1], normal[0]])
            contact = np.asarray(block.local_to_world(point), dtype=np.float64) + along
            arm = contact - centre
            lever = arm[0] * normal[1] - arm[1] * normal[0]
            start = contact - (FINGER + CLEARANCE) * normal
            for distance in DISTANCES:
                moved = distance / (1 + lever**2 / gyration)
                missing = shift - moved * normal
                error = missing @ missing + gyration * _half_turn(turn - moved * lever / gyration) ** 2
                stop = contact + (distance - FINGER) * normal
                if _on_table(start) and _on_table(stop):
                    pushes.append(Push(start, stop, float(error)))
        return pushes or [self._retreat()]

    def _retreat(self) -> Push:
        """When every side is against the wall: a stroke across the table's middle, which moves something."""
        middle = np.full(2, 256.0)
        return Push(middle, middle + _unit(self._centre() - middle) * 100, np.inf)

    def _centre(self) -> Vector:
        block = self._simulation.block
        return np.asarray(block.local_to_world(block.center_of_gravity), dtype=np.float64)


def _round_trip(start: Vector, goal: Vector, centre: Vector) -> list[Vector]:
    """Points on the circle around `centre` that lead from beside `start` to `goal`, which lies on it, the short way."""
    first = _angle(start - centre)
    arc = _half_turn(_angle(goal - centre) - first)
    radius = max(DETOUR, float(np.linalg.norm(start - centre)))
    steps = max(2, int(abs(arc) / 0.2))
    return [
        np.clip(centre + _at(first + arc * part, radius + (DETOUR - radius) * part), BORDER, 512 - BORDER)
        for part in np.linspace(0, 1, steps + 1)
    ]


def _travel(points: list[Vector], speed: float) -> list[Vector]:
    """Targets along the path through `points`, corners rounded, starting and ending gently, about `speed` a step."""
    corners = np.stack(points)
    lengths = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(corners, axis=0), axis=1))])
    steps = max(3, int(np.ceil(lengths[-1] / speed)))
    part = np.arange(1, steps + 1) / steps
    eased = lengths[-1] * part**3 * (10 - 15 * part + 6 * part**2)
    targets = np.stack([np.interp(eased, lengths, corners[:, axis]) for axis in range(2)], axis=1)
    width = len(ROUNDING) // 2
    padded = np.concatenate([corners[:1]] * width + [targets] + [targets[-1:]] * width)
    return list(np.stack([np.convolve(padded[:, axis], ROUNDING, mode="valid") for axis in range(2)], axis=1))


def _leave_circle(point: Vector, direction: Vector, centre: Vector, radius: float) -> Vector:
    """Where the ray from `point` along the unit vector `direction` leaves the circle; `point` when it is outside."""
    offset = point - centre
    along = float(offset @ direction)
    inside = along**2 - float(offset @ offset) + radius**2
    return point if inside <= along**2 else point + (np.sqrt(inside) - along) * direction


def _on_table(point: Vector) -> bool:
    return bool((point > BORDER).all() and (point < 512 - BORDER).all())


def _half_turn(angle: float) -> float:
    """`angle` in [-pi, pi)."""
    return float((angle + np.pi) % (2 * np.pi) - np.pi)


def _angle(vector: Vector) -> float:
    return float(np.arctan2(vector[1], vector[0]))


def _at(angle: float, radius: float) -> Vector:
    return radius * np.array([np.cos(angle), np.sin(angle)])


def _unit(vector: Vector) -> Vector:
    return vector / max(float(np.linalg.norm(vector)), 1e-9)


__all__ = ["PushTExpert"]
