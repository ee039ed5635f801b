"""The tabletop's MuJoCo model: Meta-World's Sawyer with a vacuum cup, a table, things, containers.

The scene is ours, built in Python; the arm's description and meshes are read from the installed package `metaworld`
(MIT). It is built once: every thing and every container has the geometries of all of its shapes, and `TabletopScene`
decides which of them are there.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from .offscreen_rendering import prepare_offscreen_rendering
from .tabletop_grammar import COLOURS, CONTAINER_COLOURS

prepare_offscreen_rendering()
try:
    import metaworld
    import mujoco
except ImportError as error:
    raise ImportError(f"the tabletop is not usable here ({error}): pip install 'priorvla[tabletop]'") from error

Vector = NDArray[np.float64]

TIMESTEP = 0.005  # s
CONTAINER_RADIUS = 0.065  # metres
SIDE = 0.20  # |x| beyond which a side of the table begins
CAMERA, VIEW = "front", 31.0  # degrees
CAMERA_PLACE, CAMERA_TARGET = np.array([0.0, 1.08, 0.92]), np.array([0.0, 0.610, 0.02])
DRAWN, NOT_DRAWN = 1, 5  # geometry groups
RGB = {
    "red": (0.85, 0.08, 0.08),
    "green": (0.08, 0.62, 0.12),
    "blue": (0.10, 0.20, 0.85),
    "yellow": (0.95, 0.80, 0.05),
    "white": (0.95, 0.95, 0.95),
    "black": (0.06, 0.06, 0.06),
}
TABLE_RGB = ((0.55, 0.42, 0.30), (0.48, 0.50, 0.52), (0.62, 0.55, 0.45), (0.38, 0.42, 0.40))
HEIGHTS = {"cube": 0.056, "ball": 0.060, "bar": 0.032, "cross": 0.032}
THINGS, HOLDERS = ("thing_0", "thing_1"), ("container_0", "container_1")
HIDDEN_BODIES = ("controller_box", "pedestal_feet", "torso", "pedestal", "right_arm_base_link", "right_l0", "head")


def build_model() -> Any:
    """A `mujoco.MjModel` of one's own; only the first of a process is compiled, which takes 0.15 s."""
    return copy.copy(_compiled())


@cache
def _compiled() -> Any:
    assets = Path(metaworld.__file__).parent / "assets"
    described = assets / "objects" / "assets"
    parts = {
        "arm.xml": _without_claws(described / "xyz_base.xml"),
        "meshes.xml": (described / "xyz_base_dependencies.xml").read_bytes(),
    }
    spec = mujoco.MjSpec.from_string(
        '<mujoco><include file="meshes.xml"/><worldbody><include file="arm.xml"/></worldbody></mujoco>', include=parts
    )
    spec.modelfiledir = str(assets / "sawyer_xyz")  # what the meshes' paths are relative to
    spec.option.timestep = TIMESTEP
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    _add_cup(spec)
    _add_materials(spec)
    _add_surroundings(spec)
    for name in THINGS:
        _add_thing(spec, name)
    for name in HOLDERS:
        _add_container(spec, name)
    model = spec.compile()
    hidden = [model.body(name).id for name in HIDDEN_BODIES]
    model.geom_group[np.isin(model.geom_bodyid, hidden)] = NOT_DRAWN
    return model


def _without_claws(file: Path) -> bytes:
    """Meta-World's arm without its cameras and its gripper, whose place a vacuum cup takes."""
    root = ElementTree.parse(file).getroot()
    for element in list(root.iter()):
        for child in list(element):
            gripper = element.get("name") == "hand" or child.get("mesh") == "eGripperBase"
            if child.tag == "camera" or gripper:
                element.remove(child)
    return ElementTree.tostring(root)


def _add_cup(spec: Any) -> None:
    """A tube and a cup on the hand; the arm carries its own weight and touches nothing else."""
    for body in spec.bodies:
        if body.name != "world":
            body.gravcomp = 1.0
            for geom in body.geoms:
                geom.contype = geom.conaffinity = 0
    hand = spec.body("hand")
    for name, size, middle, rgba in (
        ("tube", (0.011, 0.06, 0), -0.03, (0.25, 0.25, 0.27, 1)),
        ("cup", (0.020, 0.012, 0), 0.043, (0.9, 0.35, 0.75, 1)),
    ):
        hand.add_geom(
            name=name, type=mujoco.mjtGeom.mjGEOM_CYLINDER, size=size, pos=(middle, 0, 0), quat=(1, 0, 1, 0),
            rgba=rgba, mass=0.1, contype=int(name == "cup"), conaffinity=int(name == "cup"), group=DRAWN,
        )  # fmt: skip
    _add_weld(spec, "drag", "mocap", "hand", active=True)


def _add_weld(spec: Any, name: str, one: str, other: str, active: bool) -> None:
    weld = spec.add_equality(
        name=name, type=mujoco.mjtEq.mjEQ_WELD, objtype=mujoco.mjtObj.mjOBJ_BODY, name1=one, name2=other, active=active
    )
    weld.solref = (0.02, 1.0)
    weld.data = [0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1]  # the bodies' poses are equal, as Meta-World resets its own weld


def _add_materials(spec: Any) -> None:
    """A texture a look: speckled or striped things, plain containers, four tables."""
    looks: dict[str, tuple[Any, Any, Any, int]] = {}
    for colour in COLOURS:
        for pattern in range(2):
            rgb = np.array(RGB[colour])
            looks[f"{colour}_{pattern}"] = (rgb, rgb * 0.8, rgb * 0.6 + 0.1, pattern)
    for colour in CONTAINER_COLOURS:
        rgb = np.array(RGB[colour])
        looks[colour] = (rgb, rgb, rgb * 0.9, 0)
    for index, base in enumerate(TABLE_RGB):
        rgb = np.array(base)
        looks[f"table_{index}"] = (rgb, rgb * 0.9, rgb * 0.8, index % 2)
    for name, (one, other, mark, pattern) in looks.items():
        spec.add_texture(
            name=name, type=mujoco.mjtTexture.mjTEXTURE_CUBE, width=32, height=32, rgb1=one, rgb2=other,
            builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER if pattern else mujoco.mjtBuiltin.mjBUILTIN_FLAT,
            mark=mujoco.mjtMark.mjMARK_RANDOM, markrgb=mark, random=0.05,
        )  # fmt: skip
        material = spec.add_material(name=name, specular=0.1, shininess=0.1)
        textures = list(material.textures)
        textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
        material.textures = textures


def _add_surroundings(spec: Any) -> None:
    world = spec.worldbody
    spec.add_texture(
        name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_FLAT,
        rgb1=(0.5, 0.5, 0.5), rgb2=(0.5, 0.5, 0.5), width=16, height=16,
    )  # fmt: skip
    world.add_geom(name="table", type=mujoco.mjtGeom.mjGEOM_BOX, size=(0.5, 0.35, 0.05), pos=(0, 0.6, -0.05))
    for x in (-SIDE, SIDE):  # where the sides begin
        world.add_geom(
            type=mujoco.mjtGeom.mjGEOM_BOX, size=(0.003, 0.2, 0.0005), pos=(x, 0.62, 0.0), rgba=(0.9, 0.9, 0.9, 1),
            contype=0, conaffinity=0,
        )  # fmt: skip
    world.add_light(name="lamp", pos=(0, 0.6, 1.5), dir=(0, 0, -1), cutoff=90, exponent=0)
    spec.visual.headlight.ambient = (0.25, 0.25, 0.25)
    spec.visual.headlight.diffuse = (0.15, 0.15, 0.15)  # light above 1 in all would be cut off
    forward = (CAMERA_TARGET - CAMERA_PLACE) / np.linalg.norm(CAMERA_TARGET - CAMERA_PLACE)
    right, turn = np.array([-1.0, 0.0, 0.0]), np.empty(4)
    mujoco.mju_mat2Quat(turn, np.stack([right, np.cross(right, forward), -forward], axis=1).reshape(-1))
    world.add_camera(name=CAMERA, pos=CAMERA_PLACE, fovy=VIEW, quat=turn)
    stone = world.add_body(name="stone")
    stone.add_geom(
        name="stone_0", type=mujoco.mjtGeom.mjGEOM_ELLIPSOID, size=(0.032, 0.026, 0.018), pos=(0, 0, 0.012),
        rgba=(0.45, 0.45, 0.47, 1), group=DRAWN,
    )  # fmt: skip


def _add_thing(spec: Any, name: str) -> None:
    """A body with all shapes; their inertia is the same, so that a shape can be chosen without building anew."""
    body = spec.worldbody.add_body(name=name, mass=0.08, inertia=(6e-5, 6e-5, 6e-5), explicitinertial=True)
    body.add_freejoint(name=name)
    box, sphere = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_SPHERE
    cube, ball, flat = HEIGHTS["cube"] / 2, HEIGHTS["ball"] / 2, HEIGHTS["bar"] / 2
    shapes: dict[str, list[tuple[Any, tuple[float, float, float]]]] = {
        "cube": [(box, (cube, cube, cube))],
        "ball": [(sphere, (ball, 0, 0))],
        "bar": [(box, (0.055, 0.016, flat))],
        "cross": [(box, (0.045, 0.014, flat)), (box, (0.014, 0.045, flat))],
    }
    for shape, geoms in shapes.items():
        for index, (kind, size) in enumerate(geoms):
            body.add_geom(name=f"{name}_{shape}_{index}", type=kind, size=size, friction=(0.8, 0.02, 0.005), condim=6)
    _add_weld(spec, f"vacuum_{name}", "hand", name, active=False)


def _add_container(spec: Any, name: str) -> None:
    """A body with all kinds of containers; it stands fast."""
    body = spec.worldbody.add_body(name=name)
    box, cylinder = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER
    inner, wall = CONTAINER_RADIUS, 0.005
    geoms: dict[str, list[tuple[Any, ...]]] = {
        "plate": [
            (cylinder, (inner, 0.006, 0), (0, 0, 0.006), 0.0),
            (cylinder, (inner * 0.7, 0.001, 0), (0, 0, 0.013), 0.0),
        ],
        "mat": [(box, (inner * 0.95, inner * 0.95, 0.002), (0, 0, 0.002), 0.0)],
        "box": [(box, (inner, inner, 0.004), (0, 0, 0.004), 0.0)],
        "bowl": [(cylinder, (inner, 0.004, 0), (0, 0, 0.004), 0.0)],
    }
    for sign in (-1, 1):
        geoms["box"].append((box, (wall, inner, 0.022), (sign * inner, 0, 0.022), 0.0))
        geoms["box"].append((box, (inner, wall, 0.022), (0, sign * inner, 0.022), 0.0))
    segments = 12
    for index in range(segments):
        angle = 2 * np.pi * index / segments
        place = (inner * np.cos(angle), inner * np.sin(angle), 0.022)
        geoms["bowl"].append((box, (wall, inner * np.tan(np.pi / segments), 0.022), place, angle))
    for noun, parts in geoms.items():
        for index, (kind, size, place, turn) in enumerate(parts):
            quat = (np.cos(turn / 2), 0, 0, np.sin(turn / 2))
            body.add_geom(name=f"{name}_{noun}_{index}", type=kind, size=size, pos=place, quat=quat)


__all__ = [
    "CAMERA",
    "CAMERA_PLACE",
    "CAMERA_TARGET",
    "CONTAINER_RADIUS",
    "DRAWN",
    "HEIGHTS",
    "HOLDERS",
    "NOT_DRAWN",
    "SIDE",
    "THINGS",
    "TIMESTEP",
    "Vector",
    "build_model",
]
