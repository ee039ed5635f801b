"""The tabletop at work: a layout put into its model, the hand that is dragged about, and where things are.

The hand is dragged by a mocap body and keeps its direction, as in Meta-World. The cup is a simplification: what it
touches while the vacuum is on is welded to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .tabletop_grammar import CONTAINERS, SHAPES, Container, Request, Thing
from .tabletop_layouts import Layout, Placed
from .tabletop_model import (
    CAMERA,
    CAMERA_PLACE,
    CAMERA_TARGET,
    CONTAINER_RADIUS,
    DRAWN,
    HEIGHTS,
    HOLDERS,
    NOT_DRAWN,
    SIDE,
    THINGS,
    Vector,
    build_model,
)

import mujoco  # isort: skip  # after the model, whose error says what to install

STEPS = 10  # of physics, an action
GAIN, FASTEST = 0.4, 0.06  # of what is missing the hand is dragged so much a step, and along an axis at most so far (m)
HOME = np.array([0.0, 0.60, 0.24])  # of the hand
LOWEST, HIGHEST = np.array([-0.30, 0.42, 0.055]), np.array([0.30, 0.80, 0.30])  # of the hand
CUP = 0.055  # from the hand's place down to the cup's end
REACH = 0.04  # from the cup's axis to a thing's, within which the vacuum holds it
CLOSE = 0.015  # from the cup's end down to the top of a thing that it can hold
SIDE_CENTRE = 0.25
LYING = 0.075  # a thing whose middle is lower lies on something


class TabletopScene:
    """One model that shows any layout; lengths in metres, x to the left of the picture, y towards the camera."""

    def __init__(self) -> None:
        self.model: Any = build_model()
        self.data: Any = mujoco.MjData(self.model)
        self.vacuum = False
        self.held: int | None = None
        self.layout: Layout | None = None
        self._hand = self.model.body("hand").id
        self._things = [self.model.body(name).id for name in THINGS]
        self._joints = [self.model.joint(name).qposadr[0] for name in THINGS]
        self._welds = [self.model.equality(f"vacuum_{name}").id for name in THINGS]
        self._geoms: dict[str, list[int]] = {}  # of every shape of every thing and container
        for geom in range(self.model.ngeom):
            self._geoms.setdefault(self.model.geom(geom).name.rpartition("_")[0], []).append(geom)
        self._camera = self.model.camera(CAMERA).id
        self._home = self._settle()

    def arrange(self, layout: Layout) -> None:
        """Puts everything where the layout has it, the hand at its home; whatever was before leaves no trace."""
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        self.layout, self.vacuum, self.held = layout, False, None
        data.qpos[: len(self._home)] = self._home
        data.mocap_pos[0], data.mocap_quat[0] = HOME, (1.0, 0.0, 1.0, 0.0)
        for name, joint, thing, place in zip(THINGS, self._joints, layout.things, layout.places[:2], strict=True):
            data.qpos[joint : joint + 7] = _pose(place, HEIGHTS[thing.shape] / 2)
            self._show(name, SHAPES, thing.shape, f"{thing.colour}_{int(place.turn > 0)}")
        for name, container, place in zip(HOLDERS, layout.containers, layout.places[2:4], strict=True):
            self._stand(name, Placed(place.x, place.y, place.turn / 16))  # turned far, a box would reach its neighbour
            self._show(name, CONTAINERS, container.noun, container.colour)
        self._stand("stone", layout.places[4] if layout.clutter else Placed(0.0, -2.0, 0.0))
        model.geom("table").matid = model.material(f"table_{layout.table}").id
        model.light("lamp").pos[:] = layout.light
        model.light("lamp").dir[:] = CAMERA_TARGET - layout.light
        model.light("lamp").diffuse[:] = layout.brightness
        model.cam_pos[self._camera] = CAMERA_PLACE + layout.camera
        mujoco.mj_forward(model, data)

    def advance(self, goal: NDArray[np.float32], vacuum: bool) -> None:
        """Drags the hand on towards `goal` (3,) and switches the vacuum, for `STEPS` of physics."""
        data = self.data
        missing = np.clip(goal, LOWEST, HIGHEST) - data.mocap_pos[0]
        data.mocap_pos[0] += np.clip(GAIN * missing, -FASTEST, FASTEST)
        self.vacuum = vacuum
        if not vacuum and self.held is not None:
            data.eq_active[self._welds[self.held]] = 0
            self.held = None
        for _ in range(STEPS):
            if vacuum and self.held is None:
                self._take_hold()
            mujoco.mj_step(self.model, data)
        mujoco.mj_forward(self.model, data)

    @property
    def hand(self) -> Vector:
        """Where the hand is, (3,)."""
        return np.array(self.data.xpos[self._hand])

    @property
    def aim(self) -> Vector:
        """Where the hand is being dragged to, (3,)."""
        return np.array(self.data.mocap_pos[0])

    def place_of(self, thing: Thing) -> Vector:
        """Where the middle of a thing is, (3,)."""
        return np.array(self.data.xpos[self._things[self.index_of(thing)]])

    def index_of(self, thing: Thing) -> int:
        """Which of the layout's things it is."""
        assert self.layout is not None
        return self.layout.things.index(thing)

    def goal_of(self, request: Request) -> Vector:
        """A point (2,) over which the request's thing can be let go."""
        assert self.layout is not None
        if isinstance(request.place, Container):
            index = self.layout.containers.index(request.place)
            return np.array(self.model.body(HOLDERS[index]).pos[:2])
        sign = 1.0 if request.place == "left" else -1.0
        return np.array([sign * SIDE_CENTRE, self.place_of(request.thing)[1]])

    def fulfilled(self, request: Request) -> bool:
        """Whether the thing lies, let go, in its container or beyond the line of its side: nothing but geometry."""
        x, y, z = self.place_of(request.thing)
        if self.held == self.index_of(request.thing) or z > LYING:
            return False
        if isinstance(request.place, Container):
            return bool(np.hypot(*(self.goal_of(request) - (x, y))) < CONTAINER_RADIUS)
        return bool(x > SIDE if request.place == "left" else x < -SIDE)

    def _take_hold(self) -> None:
        """Welds what is right under the cup to the hand, as it lies."""
        assert self.layout is not None
        cup = self.hand - (0.0, 0.0, CUP)
        for index, (body, thing) in enumerate(zip(self._things, self.layout.things, strict=True)):
            place = self.data.xpos[body]
            above = cup[2] - (place[2] + HEIGHTS[thing.shape] / 2)
            if np.hypot(*(cup - place)[:2]) < REACH and above < CLOSE:
                rotation = self.data.xmat[self._hand].reshape(3, 3)
                relative, back = np.empty(4), np.empty(4)
                mujoco.mju_negQuat(back, self.data.xquat[self._hand])
                mujoco.mju_mulQuat(relative, back, self.data.xquat[body])
                weld = self._welds[index]
                self.model.eq_data[weld] = [0, 0, 0, *(rotation.T @ (place - self.hand)), *relative, 1]
                self.data.eq_active[weld], self.held = 1, index
                return

    def _show(self, body: str, kinds: tuple[str, ...], kind: str, material: str) -> None:
        """Of a body's geometries only those of one kind are drawn and touched."""
        material_id = self.model.material(material).id
        for each in kinds:
            for geom in self._geoms[f"{body}_{each}"]:
                there = each == kind
                self.model.geom_group[geom] = DRAWN if there else NOT_DRAWN
                self.model.geom_contype[geom] = self.model.geom_conaffinity[geom] = int(there)
                self.model.geom_matid[geom] = material_id

    def _stand(self, body: str, place: Placed) -> None:
        index = self.model.body(body).id
        pose = _pose(place, 0.0)
        self.model.body_pos[index], self.model.body_quat[index] = pose[:3], pose[3:]

    def _settle(self) -> Vector:
        """The arm's joints when its hand is at home."""
        data = self.data
        for index, joint in enumerate(self._joints):
            data.qpos[joint : joint + 3] = (0.3 * index, 2.0, 0.1)
        data.mocap_pos[0], data.mocap_quat[0] = HOME, (1.0, 0.0, 1.0, 0.0)
        for _ in range(1500):
            mujoco.mj_step(self.model, data)
        return np.array(data.qpos[: min(self._joints)])


def _pose(place: Placed, height: float) -> Vector:
    return np.array([place.x, place.y, height, np.cos(place.turn / 2), 0.0, 0.0, np.sin(place.turn / 2)])


__all__ = ["CUP", "HIGHEST", "HOME", "LOWEST", "STEPS", "TabletopScene"]
