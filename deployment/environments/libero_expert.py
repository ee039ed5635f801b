"""Our scripted expert for LIBERO's pick-and-place tasks: one thing is taken and put into or onto another.

It sees where things are, which a policy must not, and answers with LIBERO's end-effector actions: whatever arm carries
the gripper. Grasps are ours, measured on the simulated things.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...configuration.rotations import from_matrix
from .libero_robots import POSITION_REACH, ROTATION_REACH
from .libero_scene import LiberoScene

Array = NDArray[np.float64]
DOWN = np.array([0.0, 0.0, -1.0])
OPEN, CLOSED = -1.0, 1.0


@dataclass(frozen=True)
class Grasp:
    """Where the fingers close on a thing.

    Args:
        height: of the point between the finger tips above the thing's origin (m).
        closing_axis: the thing's own axis along which the fingers close; it lies level while the thing stands.
        rim: distance from the thing's axis to the rim that is pinched instead (m), anywhere around; 0 for no rim.
    """

    height: float
    closing_axis: tuple[float, float, float] = (1.0, 0.0, 0.0)
    rim: float = 0.0


BOX = Grasp(0.006, closing_axis=(0.0, 1.0, 0.0))  # lies flat; its long side is wider than the gripper opens
CAN = Grasp(0.005, closing_axis=(0.0, 0.0, 1.0))
GRASPS = {
    "alphabet_soup": CAN,
    "tomato_sauce": CAN,
    "butter": BOX,
    "chocolate_pudding": BOX,
    "cream_cheese": BOX,
    "milk": Grasp(0.03),
    "orange_juice": Grasp(0.03),
    "bbq_sauce": Grasp(0.015),
    "ketchup": Grasp(0.045),  # deeper, its neck meets the palm
    "salad_dressing": Grasp(0.045),
    "black_bowl": Grasp(0.04, rim=0.048),
}


@dataclass(frozen=True)
class Placement:
    """How a thing is brought to its target.

    Args:
        travel: least height of the finger tips over the target on the way (m).
        release: height of the finger tips over the target where they let go (m); None: where the thing nearly stands.
    """

    travel: float
    release: float | None = None


PLACEMENTS = {"in": Placement(0.25, 0.09), "on": Placement(0.16)}
HOVER = 0.12  # m above the grasp from where the hand goes straight down
CLEARANCE = 0.012  # m between a thing and what it is put onto when the fingers open
CLOSING_STEPS, OPENING_STEPS = 10, 6
NEAR, VERY_NEAR, OUT_OF_REACH = 0.02, 0.009, 0.018  # m: a way's end, an exact grasp, a grasp that is not worth trying
ALIGNED = 0.1  # rad
SLIPPED = 0.05  # m that a thing moved in the hand
RIM_DIRECTIONS = 16
SIMILAR = 0.7  # cosine between directions of which a second is not tried
TURNING = 0.01  # m: a quarter turn of the hand is as bad as sinking so deep into something
# Points of the open hand under which nothing may be, from the point between the finger tips (m): along the fingers'
# motion, across it, up. The tips of the fingers, the ends of the palm.
HAND_OUTLINE = (
    *((along, sideways, -0.015) for along in (-0.05, 0.05) for sideways in (-0.012, 0.012)),
    *((along, sideways, 0.045) for along in (-0.1, -0.05, 0.05, 0.1) for sideways in (-0.03, 0.03)),
)
TRIMMED, TRIM_RATE = 0.04, 0.1  # m, 1/step: nearer than this, what friction leaves of the way is added up
PATIENCE = 50  # steps after which a phase ends anyway
PHASES = ("approach", "descend", "close", "lift", "carry", "lower", "open", "retreat")


class PickAndPlace:
    """Takes `thing` and brings it to `target`; what slips is taken again, a rim at another place.

    Args:
        scene: a scene that was just reset.
        relation, thing, target: LIBERO's goal, for example `on`, `bowl_1`, `plate_1`.

    Raises:
        NotImplementedError: on a relation or a thing that this expert has no way with.
    """

    def __init__(self, scene: LiberoScene, relation: str, thing: str, target: str) -> None:
        grasp = grasp_of(thing)
        if relation not in PLACEMENTS or grasp is None:
            raise NotImplementedError(
                f"the scripted expert has no way to bring {thing!r} {relation!r} {target!r}: it takes "
                f"{', '.join(GRASPS)} and brings them {' or '.join(PLACEMENTS)}; choose another task, or add a Grasp"
            )
        self._scene = scene
        self._thing = thing
        self._target = target
        self._grasp = grasp
        self._placement = PLACEMENTS[relation]
        self._height = float(scene.hand_position[2])  # at which the arm may cross the scene
        self._tried: list[Array] = []
        self._enter("approach")

    def action(self) -> Array:
        """LIBERO's end-effector action (7,) for now: displacement, rotation, gripper, in [-1, 1]."""
        displacement = (self._goal() - self._scene.hand_position + self._trim) / POSITION_REACH
        turn = self._turn() / ROTATION_REACH
        gripper = CLOSED if self._phase in ("close", "lift", "carry", "lower") else OPEN
        return np.concatenate([_shortened(displacement), _shortened(turn), [gripper]])

    def advance(self, solved: bool) -> None:
        """Call it after every step: goes on to the next phase when this one is done."""
        self._steps += 1
        gap = self._goal() - self._scene.hand_position
        if float(np.linalg.norm(gap)) < TRIMMED:
            self._trim += TRIM_RATE * gap
        done = self._is_done()
        if self._has_failed(done, solved):
            self._enter("approach")
        elif done and self._phase != PHASES[-1]:
            self._enter(PHASES[PHASES.index(self._phase) + 1])

    def _has_failed(self, done: bool, solved: bool) -> bool:
        match self._phase:
            case "descend":
                return done and self._gap() > OUT_OF_REACH
            case "lift":
                return done and not self._holds()
            case "carry" | "lower":
                return not self._holds()
            case "retreat":
                return done and not solved
            case _:
                return False

    def _gap(self) -> float:
        return float(np.linalg.norm(self._goal() - self._scene.hand_position))

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._steps = 0
        self._trim = np.zeros(3)
        hand = self._scene.hand_position
        thing = self._scene.pose(self._thing)[0]
        if phase == "approach":
            self._closing = self._choose_closing()
        elif phase == "descend":
            self._grip = self._grip_point()
        elif phase == "lift":
            self._offset = thing - hand
            self._lifted = np.array([*hand[:2], max(self._height, self._travel_height(), hand[2] + HOVER)])
        elif phase in ("open", "retreat"):
            self._released = hand + (0.0 if phase == "open" else np.array([0.0, 0.0, HOVER]))

    def _goal(self) -> Array:
        """Where the point between the finger tips is to be (m)."""
        match self._phase:
            case "approach":
                grip = self._grip_point()
                return np.array([*grip[:2], max(self._height, grip[2] + HOVER)])
            case "descend" | "close":
                return self._grip
            case "lift":
                return self._lifted
            case "carry":
                return self._over_target(self._lifted[2])
            case "lower":
                return self._over_target(self._release_height())
            case _:
                return self._released

    def _is_done(self) -> bool:
        match self._phase:
            case "approach":
                arrived = self._gap() < NEAR and float(np.linalg.norm(self._turn())) < ALIGNED
            case "close":
                arrived = self._steps >= CLOSING_STEPS
            case "open":
                arrived = self._steps >= OPENING_STEPS
            case "descend" | "lower":
                arrived = self._gap() < VERY_NEAR
            case _:
                arrived = self._gap() < NEAR
        return arrived or self._steps >= PATIENCE

    def _grip_point(self) -> Array:
        position, _ = self._scene.pose(self._thing)
        return position + self._grasp.rim * self._closing + np.array([0.0, 0.0, self._grasp.height])

    def _over_target(self, height: float) -> Array:
        """Where the hand is when the thing that it holds is over the target."""
        thing, target = self._scene.pose(self._thing)[0], self._scene.pose(self._target)[0]
        hand = self._scene.hand_position
        return np.array([*(hand + target - thing)[:2], height])

    def _travel_height(self) -> float:
        return float(self._scene.pose(self._target)[0][2]) + self._placement.travel

    def _release_height(self) -> float:
        target = float(self._scene.pose(self._target)[0][2])
        if self._placement.release is not None:
            return target + self._placement.release
        return target + CLEARANCE - float(self._offset[2])

    def _holds(self) -> bool:
        offset = self._scene.pose(self._thing)[0] - self._scene.hand_position
        return float(np.linalg.norm(offset - self._offset)) < SLIPPED

    def _turn(self) -> Array:
        """Rotation vector (rad, world) to fingers that point down and close along the chosen direction."""
        pointing, closing = self._scene.grip_axes
        wanted = self._closing if closing @ self._closing >= 0 else -self._closing
        now = np.column_stack([closing, np.cross(pointing, closing), pointing])
        then = np.column_stack([wanted, np.cross(DOWN, wanted), DOWN])
        return np.asarray(from_matrix((then @ now.T)[None], "axis_angle")[0])

    def _choose_closing(self) -> Array:
        """The level direction in which the fingers close; for a rim also the way from the thing's axis to the grip."""
        if not self._grasp.rim:
            return _level(self._scene.pose(self._thing)[1] @ np.array(self._grasp.closing_axis))
        angles = np.arange(RIM_DIRECTIONS) * 2 * np.pi / RIM_DIRECTIONS
        directions = np.column_stack([np.cos(angles), np.sin(angles), np.zeros(RIM_DIRECTIONS)])
        untried = [one for one in directions if all(one @ other < SIMILAR for other in self._tried)]
        if not untried:
            self._tried, untried = [], list(directions)
        self._tried.append(min(untried, key=self._hindrance))
        return self._tried[-1]

    def _hindrance(self, direction: Array) -> float:
        """How deep fingers and palm would sink into things (m) when pinching the rim there; turning counts a little."""
        grip = self._scene.pose(self._thing)[0] + self._grasp.rim * direction + [0.0, 0.0, self._grasp.height]
        across = np.cross(direction, DOWN)
        depth = 0.0
        for along, sideways, height in HAND_OUTLINE:
            x, y, z = grip + along * direction + sideways * across + [0.0, 0.0, height]
            depth += max(0.0, self._scene.surface_height(x, y, self._thing) - z)
        _, closing = self._scene.grip_axes
        return depth + TURNING * (1.0 - abs(float(closing @ direction)))


def grasp_of(thing: str) -> Grasp | None:
    """The grasp of `milk_1`, and of LIBERO-PRO's `yellow_milk_1`, of the same shape; None where there is none.

    There is none for its bigger things: `bigger_alphabet_soup` is 9 cm wide, and the gripper opens to 8.
    """
    kind = thing.rsplit("_", 1)[0]
    if kind.startswith("bigger_"):
        return None
    return next((grasp for name, grasp in GRASPS.items() if kind == name or kind.endswith(f"_{name}")), None)


def _level(direction: Array) -> Array:
    flat = np.array([direction[0], direction[1], 0.0])
    return flat / np.linalg.norm(flat)


def _shortened(vector: Array) -> Array:
    """The same direction with no entry beyond 1."""
    return vector / max(1.0, float(np.abs(vector).max()))


__all__ = ["GRASPS", "Grasp", "PickAndPlace"]
