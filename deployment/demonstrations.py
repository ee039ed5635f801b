"""Demonstrations: a simulator's scripted expert drives, and what a robot would have seen is written down.

Several processes may make them side by side; what they make depends on the jobs alone.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .environments.registry import OutOfReachError, RobotEnvironment
from .worker_processes import LastEnvironment, worker_pool

LARGEST_BLOCK = 8  # demonstrations handed over together: their pictures are 30 MB (Meta-World) to 180 MB (LIBERO)


@dataclass(frozen=True)
class DemonstrationSettings:
    """How demonstrations are made; see `priorvla.deployment.collect.collect` for the meaning of the fields."""

    seed: int
    images: bool
    noise: float
    steps_after_success: int | None
    attempts: int
    image_every: int = 1


@dataclass(frozen=True)
class DemonstrationJob:
    """Demonstration number `index` of a task; `options` are the arguments of the environment's class."""

    environment: str
    options: dict[str, Any]
    task: str
    index: int
    settings: DemonstrationSettings


@dataclass
class Demonstration:
    """An episode of T steps, `solved` unless its environment does not ask for success.

    `states` (T, S) and `images` (camera -> (T, h, w, 3) uint8) are what was seen before each step (with `image_every`
    above 1 a picture stands until the next is drawn), `actions` (T, D)
    what the expert wanted then: where the executed action was noisy the label is still the clean one, so that the data
    shows how to come back. `start_seed` is the environment's reset seed; before it, `failures` starts were not solved.
    """

    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    images: dict[str, NDArray[np.uint8]]
    instruction: str
    start_seed: int
    noise: float
    failures: int
    solved: bool


def make_demonstrations(jobs: list[DemonstrationJob], num_workers: int) -> Generator[Demonstration | None, None, None]:
    """Runs the jobs and yields what `record_demonstration` returns for each, in their order.

    One process means this one; with more, they run only a little ahead of the reader, so that memory stays bounded.
    Close the generator (or exhaust it) to end them.
    """
    if num_workers == 1:
        worker = _Worker()
        try:
            yield from map(worker.run, jobs)
        finally:
            worker.close()
        return
    blocks = _blocks(jobs, max(1, min(LARGEST_BLOCK, len(jobs) // (2 * num_workers))))
    with worker_pool(num_workers, _prepare_worker) as pool:
        pending: deque[Future[list[Demonstration | None]]] = deque()
        pending.extend(pool.submit(_run_in_worker, block) for block in islice(blocks, 2 * num_workers))
        while pending:
            yield from pending.popleft().result()
            pending.extend(pool.submit(_run_in_worker, block) for block in islice(blocks, 1))


def record_demonstration(
    environment: RobotEnvironment, task: str, index: int, settings: DemonstrationSettings
) -> Demonstration | None:
    """The demonstration number `index` of `task`, on the first start that the expert solves; None if it solves none.

    An environment that does not require success (`success_required`) keeps its first start, solved or not. A start that
    brings the expert where its robot cannot reach is not solved either, and never kept. Starts and noise depend on the
    seed, the task's name, the index and the attempt, and on nothing else: neither other tasks nor other demonstrations
    nor `images` change them. Odd indices are noisy.
    """
    noise = settings.noise if index % 2 else 0.0
    for attempt in range(settings.attempts):
        source = np.random.SeedSequence([settings.seed, zlib.crc32(task.encode()), index, attempt])
        start_seed = int(source.generate_state(1)[0])
        generator = np.random.default_rng(source)
        try:
            states, actions, images, solved = _record_episode(environment, start_seed, generator, noise, settings)
        except OutOfReachError:
            continue
        if solved or not environment.success_required:
            return Demonstration(states, actions, images, environment.instruction, start_seed, noise, attempt, solved)
    return None


def _record_episode(
    environment: RobotEnvironment,
    start_seed: int,
    generator: np.random.Generator,
    noise: float,
    settings: DemonstrationSettings,
) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, NDArray[np.uint8]], bool]:
    """`(states, actions, images, solved)` up to `steps_after_success` steps after the first success, or to the end.

    An episode that the environment ends before is not solved; what it says after the first success is no matter.
    """
    observation, info = environment.reset(seed=start_seed)
    cameras = list(observation["images"]) if settings.images else []
    states, actions = [], []
    images: dict[str, list[NDArray[np.uint8]]] = {camera: [] for camera in cameras}
    steps_left: int | None = None
    over = False
    while not over and steps_left != 0:
        action = environment.expert_action()
        states.append(observation["state"])
        actions.append(action)
        for camera in cameras:
            fresh = (len(states) - 1) % settings.image_every == 0
            images[camera].append(observation["images"][camera] if fresh else images[camera][-1])
        executed = action + generator.normal(0.0, noise * environment.noise_scale, action.shape).astype(np.float32)
        observation, _, terminated, truncated, info = environment.step(executed)
        over = truncated or (terminated and steps_left is None)
        if steps_left is not None:
            steps_left -= 1
        elif info["success"]:
            given = settings.steps_after_success
            steps_left = environment.steps_after_success if given is None else given
    pictures = {camera: np.stack(frames) for camera, frames in images.items()}
    return np.stack(states), np.stack(actions), pictures, steps_left is not None


def _blocks(jobs: list[DemonstrationJob], size: int) -> Iterator[list[DemonstrationJob]]:
    """Neighbours of one task, at most `size` together, so that a worker seldom builds another environment."""
    for _, group in groupby(jobs, lambda job: job.task):
        while block := list(islice(group, size)):
            yield block


class _Worker:
    """Makes demonstrations one after the other."""

    def __init__(self) -> None:
        self._environments = LastEnvironment()

    def run(self, job: DemonstrationJob) -> Demonstration | None:
        environment = self._environments.get(job.environment, job.task, job.options)
        return record_demonstration(environment, job.task, job.index, job.settings)

    def close(self) -> None:
        self._environments.close()


_process_worker: _Worker | None = None


def _prepare_worker() -> None:
    global _process_worker
    _process_worker = _Worker()


def _run_in_worker(block: list[DemonstrationJob]) -> list[Demonstration | None]:
    assert _process_worker is not None
    return [_process_worker.run(job) for job in block]


__all__ = [
    "Demonstration",
    "DemonstrationJob",
    "DemonstrationSettings",
    "make_demonstrations",
    "record_demonstration",
]
