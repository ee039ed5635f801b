"""The scripted expert of the tabletop, which sees where everything is: over the thing, down, up, across, let go."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .tabletop_grammar import Request
from .tabletop_model import HEIGHTS, Vector
from .tabletop_scene import CUP, HIGHEST, HOME, LOWEST, TabletopScene

CRUISE = 0.12  # of the cup's end above the table, between things
RELEASE = 0.05  # of a held thing's lower side above the table, where it is let go
NEAR = 0.016  # horizontally, from where the hand goes down
FAR = 0.06  # ... and from where it does not yet come down to meet the thing


def expert_action(scene: TabletopScene, requests: Sequence[Request]) -> NDArray[np.float32]:
    """The next action (4,) for the first request that is not fulfilled: where the hand is to go (m), and the vacuum. A
    function of the moment alone, so that it comes back from wherever noise has led it."""
    request = next((request for request in requests if not scene.fulfilled(request)), None)
    target, vacuum = (HOME, False) if request is None else _aim(scene, request)
    aim = scene.aim
    if request is None and aim[2] < HOME[2] - 0.03:
        target = np.array([*aim[:2], HOME[2]])  # straight up first
    return np.append(np.clip(target, LOWEST, HIGHEST), 1.0 if vacuum else -1.0).astype(np.float32)


def _aim(scene: TabletopScene, request: Request) -> tuple[Vector, bool]:
    """Where the hand is to be dragged, and whether the vacuum is on."""
    thing, height = scene.place_of(request.thing), HEIGHTS[request.thing.shape]
    cup = scene.hand - (0.0, 0.0, CUP)
    if scene.held is not None and scene.held != scene.index_of(request.thing):
        return np.array([*cup[:2], CRUISE + CUP]), False
    if scene.held is None:
        apart = float(np.hypot(*(thing - cup)[:2]))
        if apart > NEAR:
            descent = np.clip((FAR - apart) / (FAR - NEAR), 0.0, 0.5)
            top = thing[2] + height / 2
            return np.array([*thing[:2], CUP + CRUISE + descent * (top - CRUISE)]), False
        return np.array([*thing[:2], thing[2] + height / 2 + CUP - 0.004]), True
    goal = scene.goal_of(request)
    hangs = CUP + height  # from the hand's place to the held thing's lower side
    offset = (thing - cup)[:2]
    apart = float(np.hypot(*(goal - thing[:2])))
    if apart > 2 * NEAR:
        lifted = thing[2] - height / 2
        across = goal - offset if lifted > RELEASE or apart > 0.5 else scene.aim[:2]
        return np.array([*across, CRUISE + hangs - 0.02]), True
    low = thing[2] - height / 2 < RELEASE + 0.01
    return np.array([*(goal - offset), RELEASE + hangs - 0.005]), not low


__all__ = ["expert_action"]
