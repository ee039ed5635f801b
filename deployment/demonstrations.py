"""One demonstration: a simulator's scripted expert drives, and what a robot would have seen is written down."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .environments.registry import RobotEnvironment


@dataclass(frozen=True)
class DemonstrationSettings:
    """How demonstrations are made; see `priorvla.deployment.collect.collect` for the meaning of the fields."""

    seed: int
    images: bool
    noise: float
    steps_after_success: int
    attempts: int


@dataclass
class Demonstration:
    """A solved episode of T steps.

    `states` (T, S) and `images` (camera -> (T, h, w, 3) uint8) are what was seen before each step, `actions` (T, D) what the
    expert wanted then: where the executed action was noisy, the label is still the clean one, so that the data shows how to
    come back. `start_seed` is the environment's reset seed, `failures` how many starts before it the expert did not solve.
    """

    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    images: dict[str, NDArray[np.uint8]]
    instruction: str
    start_seed: int
    noise: float
    failures: int


def record_demonstration(
    environment: RobotEnvironment, task: str, index: int, settings: DemonstrationSettings
) -> Demonstration | None:
    """The demonstration number `index` of `task`, on the first start that the expert solves; None if it solves none.

    Starts and noise depend on the seed, the task's name, the index and the attempt, and on nothing else: neither other
    tasks nor other demonstrations nor `images` change them. Odd indices are noisy.
    """
    noise = settings.noise if index % 2 else 0.0
    for attempt in range(settings.attempts):
        source = np.random.SeedSequence([settings.seed, zlib.crc32(task.encode()), index, attempt])
        start_seed = int(source.generate_state(1)[0])
        episode = _record_episode(environment, start_seed, np.random.default_rng(source), noise, settings)
        if episode is not None:
            states, actions, images = episode
            return Demonstration(states, actions, images, environment.instruction, start_seed, noise, attempt)
    return None


def _record_episode(
    environment: RobotEnvironment,
    start_seed: int,
    generator: np.random.Generator,
    noise: float,
    settings: DemonstrationSettings,
) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, NDArray[np.uint8]]] | None:
    """`(states, actions, images)` up to `steps_after_success` steps after the first success; None without success."""
    observation, info = environment.reset(seed=start_seed)
    cameras = list(observation["images"]) if settings.images else []
    states, actions = [], []
    images: dict[str, list[NDArray[np.uint8]]] = {camera: [] for camera in cameras}
    steps_left: int | None = None
    truncated = False
    while not truncated and steps_left != 0:
        action = environment.expert_action()
        states.append(observation["state"])
        actions.append(action)
        for camera in cameras:
            images[camera].append(observation["images"][camera])
        executed = action + generator.normal(0.0, noise, action.shape).astype(np.float32)
        observation, _, _, truncated, info = environment.step(executed)
        if steps_left is not None:
            steps_left -= 1
        elif info["success"]:
            steps_left = settings.steps_after_success
    if steps_left is None:
        return None
    return np.stack(states), np.stack(actions), {camera: np.stack(frames) for camera, frames in images.items()}


__all__ = ["Demonstration", "DemonstrationSettings", "record_demonstration"]
