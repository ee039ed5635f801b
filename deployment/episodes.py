"""Episodes of an evaluation: what one trial is, and the processes that run many, each handed over when it ends."""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..configuration.embodiment import Embodiment
from .command_counts import CommandCounts
from .environments.trial_starts import start_seed
from .policy import Policy
from .worker_processes import LastEnvironment, worker_pool

FILM_EVERY = 4  # steps between two frames of a film
STRIP_FRAMES = 6  # of an episode that failed: its start, its end, and what lies between
SUCCESS = ("success", "is_success")  # under which an info says so: ours, and other Gymnasium environments'
LARGEST_BLOCK = 8  # trials of one task that a process takes on, so that it need not build the environment for each


@dataclass(frozen=True)
class TrialBlock:
    """Some trials of one task, which one process runs.

    Args:
        environment, options: as `LastEnvironment.get` takes them.
        seed: of the evaluation; with a trial's number it decides that trial's start.
        trials: their numbers, ascending.
        films: trials below this number are filmed.
        strips: whether a few frames of every episode that failed are kept.
        blank_images: every picture that the policy sees is black.
        embodiment: the name by which the policy knows the robot; None is the environment's own.
    """

    environment: str | Callable[..., Any]
    options: dict[str, Any]
    task: str
    seed: int
    trials: Sequence[int]
    films: int = 0
    strips: bool = False
    blank_images: bool = False
    embodiment: str | None = None


@dataclass
class Episode:
    """One trial that is over: `steps` and `seconds` it took, and frames (T, h, w, 3) of it where they were wanted.

    Of trials that run side by side the seconds are those of all.

    `commands` says what limits did to them, where the policy tells; `outcome` what was done, where the environment's
    infos do (a text of its own, besides success).
    """

    task: str
    trial: int
    success: bool
    steps: int
    seconds: float
    film: NDArray[np.uint8] | None = None
    strip: NDArray[np.uint8] | None = None
    commands: CommandCounts | None = None
    outcome: str | None = None


@dataclass
class FailedTrial:
    """One trial without an outcome: the environment or the policy raised `error`; `trace` says where."""

    task: str
    trial: int
    error: str
    trace: str = ""


class UnfitError(ValueError):
    """A policy or an environment of which no trial could be run."""


def trial_blocks(
    tasks: Sequence[str],
    missing: Mapping[str, Sequence[int]],
    num_workers: int,
    like: TrialBlock,
    batch_size: int = 1,
) -> list[TrialBlock]:
    """The trials that are `missing` of each of `tasks`, in blocks that differ from `like` in task and trials alone."""
    total = sum(len(missing[task]) for task in tasks)
    size = max(batch_size, min(LARGEST_BLOCK, total // (2 * num_workers)))
    return [
        replace(like, task=task, trials=tuple(missing[task][first : first + size]))
        for task in tasks
        for first in range(0, len(missing[task]), size)
    ]


def run_blocks(
    policy: Any, blocks: Sequence[TrialBlock], num_workers: int, batch_size: int = 1
) -> Generator[Episode | FailedTrial]:
    """The trials of all blocks, each as soon as it is over; of several processes in the order in which they end.

    A process runs `batch_size` trials side by side; of several processes these are handed over when all are over.
    `policy` is one, or a function that makes one; several processes need the function. ValueError where they have none.
    An error that is not of one trial alone is raised when those that other processes had begun are over.
    """
    if num_workers > 1 and not callable(policy):
        raise ValueError(f"num_workers={num_workers} needs a function that makes the policy, for every process its own")
    if not blocks:
        return
    if num_workers > 1:
        yield from _run_in_processes(policy, deque(blocks), min(num_workers, len(blocks)), batch_size)
        return
    runner = EpisodeRunner(policy() if callable(policy) else policy, batch_size)
    try:
        for block in blocks:
            yield from runner.run(block, block.trials)
    finally:
        runner.close()


def _run_in_processes(
    make_policy: Any, waiting: deque[TrialBlock], num_workers: int, batch_size: int
) -> Generator[Episode | FailedTrial]:
    # A pool of one each, because a pool of many does not let one choose who goes on with a block.
    with ExitStack() as stack:
        pools = [
            stack.enter_context(worker_pool(1, _prepare_worker, make_policy, batch_size)) for _ in range(num_workers)
        ]
        running: dict[Future[list[Episode | FailedTrial]], tuple[ProcessPoolExecutor, TrialBlock, deque[int]]] = {}

        def go_on(pool: ProcessPoolExecutor, block: TrialBlock | None, left: deque[int]) -> None:
            if not left and waiting:
                block = waiting.popleft()
                left = deque(block.trials)
            if block is not None and left:
                trials = [left.popleft() for _ in range(min(batch_size, len(left)))]
                running[pool.submit(_run_in_worker, block, trials)] = (pool, block, left)

        for pool in pools:
            go_on(pool, None, deque())
        error: BaseException | None = None
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                error = error or future.exception()
                place = running.pop(future)
                if error is None:
                    go_on(*place)
                if future.exception() is None:
                    yield from future.result()
        if error is not None:
            raise error


_process_runner: Callable[[], EpisodeRunner]  # in a worker process: makes its runner, once


def _prepare_worker(make_policy: Callable[[], Policy], batch_size: int) -> None:
    # The policy itself is made by the first trial: an error in here would only be reported as a broken pool.
    global _process_runner
    torch.set_num_threads(1)
    _process_runner = cache(lambda: EpisodeRunner(make_policy(), batch_size))


def _run_in_worker(block: TrialBlock, trials: Sequence[int]) -> list[Episode | FailedTrial]:
    return list(_process_runner().run(block, trials))


@dataclass
class _Running:
    """A trial that is not over: it `waits` with the policy's session and an observation, and goes on with an action."""

    block: TrialBlock
    trial: int
    episode: Generator[tuple[Any, dict[str, Any]], NDArray[np.float32], Episode]
    waits: tuple[Any, dict[str, Any]] | None = None


class EpisodeRunner:
    """Runs trials, `batch_size` side by side: each in an environment of its own, which is kept while the task is the
    same, and all of them driven in one batch."""

    def __init__(self, policy: Policy, batch_size: int = 1) -> None:
        self._policy = policy
        self._environments = [LastEnvironment() for _ in range(batch_size)]

    def run(self, block: TrialBlock, trials: Sequence[int]) -> Generator[Episode | FailedTrial]:
        """The numbered trials of the block's task, each as soon as it is over. After one that failed its environment is
        built anew.

        Raises UnfitError on a policy of another robot or with a camera that is not there, or infos that do not say
        whether an episode succeeded; ImportError where the simulator is not installed.
        """
        waiting, running = deque(trials), dict[int, _Running]()
        while waiting or running:
            for place in range(len(self._environments)):
                while waiting and place not in running:
                    trial = waiting.popleft()
                    running[place] = _Running(block, trial, self._episode(place, block, trial))
                    yield from self._go_on(place, running, None)
            actions = self._actions([one.waits for one in running.values() if one.waits is not None])
            for place, action in zip(list(running), actions, strict=True):
                yield from self._go_on(place, running, action)

    def _go_on(
        self, place: int, running: dict[int, _Running], action: NDArray[np.float32] | Exception | None
    ) -> Iterator[Episode | FailedTrial]:
        """A step of the trial at a place, with the policy's action or its error; the trial, if it is over."""
        one = running[place]
        try:
            one.waits = one.episode.throw(action) if isinstance(action, Exception) else one.episode.send(action)  # type: ignore[arg-type]  # None begins
        except StopIteration as over:
            del running[place]
            yield over.value
        except (UnfitError, ImportError):
            raise
        except Exception as error:
            del running[place]
            with suppress(Exception):  # it may be broken enough not to close
                self._environments[place].close()
            self._environments[place] = LastEnvironment()
            told = f"{type(error).__name__}: {error}"
            yield FailedTrial(one.block.task, one.trial, told, traceback.format_exc())

    def _actions(self, waiting: Sequence[tuple[Any, dict[str, Any]]]) -> Sequence[NDArray[np.float32] | Exception]:
        """What the policy does in each episode that waits, or the error that it raises there."""
        try:
            return list(self._policy.act(*map(list, zip(*waiting, strict=True)))) if waiting else []
        except Exception as error:
            if len(waiting) == 1:
                return [error]
        return [own for one in waiting for own in self._actions([one])]  # whose error it was

    def _episode(
        self, place: int, block: TrialBlock, trial: int
    ) -> Generator[tuple[Any, dict[str, Any]], NDArray[np.float32], Episode]:
        environment = self._environments[place].get(block.environment, block.task, block.options)
        robot = getattr(environment.unwrapped, "embodiment", None)
        if robot is not None:
            require_same_robot(self._policy.embodiment, robot, str(block.environment), block.embodiment)
        return (yield from _run_episode(self._policy, environment, block, trial))

    def close(self) -> None:
        for environment in self._environments:
            environment.close()


def require_same_robot(body: Embodiment, robot: Embodiment, environment: str, embodiment: str | None) -> None:
    """Raises UnfitError unless `body`, which a policy drives, is the `robot` of `environment`, or said to be it.

    `embodiment` is the name that the policy has for that robot; None: the same. The policy may do without some of the
    robot's cameras.
    """
    if body.name != (embodiment or robot.name):
        raise UnfitError(
            f"the policy drives {body.name!r}, {environment} has {robot.name!r}: name a body of the checkpoint that is "
            "this robot (--embodiment, one for each --arm), or evaluate a policy that knows it"
        )
    for part in ("action", "state"):
        own, here = (getattr(entry, f"{part}_names") for entry in (body, robot))
        if len(own) != len(here):
            raise UnfitError(
                f"{body.name!r} has {len(own)} {part} dims ({', '.join(own)}), {robot.name!r} of {environment} "
                f"{len(here)} ({', '.join(here)}): it is another robot"
            )
    _require_cameras(body, robot.cameras, environment)


def _require_cameras(body: Embodiment, there: Sequence[str], environment: str) -> None:
    if set(body.cameras) - set(there):
        raise UnfitError(
            f"the policy sees {body.name!r} by the cameras {', '.join(body.cameras)}, {environment} has "
            f"{', '.join(there) or 'none'}: evaluate a policy that was trained on some of these, or name the pictures "
            "of an environment of your own as the policy does"
        )


def _run_episode(
    policy: Policy, environment: Any, block: TrialBlock, trial: int
) -> Generator[tuple[Any, dict[str, Any]], NDArray[np.float32], Episode]:
    """Yields session and observation, and is sent the action, until the episode is over."""
    started = time.perf_counter()
    seed = start_seed(block.seed, trial)
    observation, info = environment.reset(seed=seed)
    if getattr(environment.unwrapped, "embodiment", None) is None:
        _require_cameras(policy.embodiment, list(observation["images"]), "the environment")
    session = policy.new_session(seed)
    instruction = getattr(environment.unwrapped, "instruction", block.task)
    shown = _steps_shown(environment, block, trial)
    frames: list[NDArray[np.uint8]] = []
    success, terminated, truncated, step = False, False, False, 0
    while not (success or terminated or truncated):
        if shown(step):
            frames.append(environment.render())
        images = SeenImages(observation["images"], policy.embodiment.cameras, block.blank_images)
        action = yield session, {**observation, "images": images, "instruction": instruction}
        observation, _, terminated, truncated, info = environment.step(action)
        success = any(bool(info.get(key)) for key in SUCCESS)
        step += 1
    if not info.keys() & set(SUCCESS):
        raise UnfitError(f"{block.task!r}: the infos of this environment have no {' or '.join(SUCCESS)}: say it there")
    film, strip = None, None
    if frames:
        frames.append(environment.render())
        if trial < block.films:
            film = np.stack(frames)
        if block.strips and not success:
            chosen = np.unique(np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int))
            strip = np.stack([frames[i] for i in chosen])
    counted = getattr(policy, "command_counts", None)
    commands = None if counted is None else counted(session)
    seconds, outcome = time.perf_counter() - started, info.get("outcome")
    told = outcome if isinstance(outcome, str) else None
    return Episode(block.task, trial, success, step, seconds, film, strip, commands, told)


def _steps_shown(environment: Any, block: TrialBlock, trial: int) -> Callable[[int], bool]:
    """At which steps a frame is drawn: a film's, or of a trial without one the few that a strip needs.

    Those are spread over the longest that an episode can be; an environment that does not tell has strips of films.
    """
    if trial < block.films:
        return lambda step: step % FILM_EVERY == 0
    spec = getattr(environment, "spec", None)
    longest = getattr(environment.unwrapped, "max_episode_steps", None) or getattr(spec, "max_episode_steps", None)
    if not block.strips or longest is None:
        return lambda step: False
    every = max(1, -(-longest // (STRIP_FRAMES - 1)))
    return lambda step: step % every == 0


class SeenImages(Mapping[str, NDArray[np.uint8]]):
    """Of an environment's pictures those of a policy's `cameras`; another is never asked for, and so never drawn.

    With `blank` every picture is black.
    """

    def __init__(self, images: Mapping[str, NDArray[np.uint8]], cameras: Sequence[str], blank: bool = False) -> None:
        self._images, self._blank = images, blank
        self._cameras = [camera for camera in images if camera in cameras]

    def __getitem__(self, camera: str) -> NDArray[np.uint8]:
        if camera not in self._cameras:
            raise KeyError(camera)
        return np.zeros_like(self._images[camera]) if self._blank else self._images[camera]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cameras)

    def __len__(self) -> int:
        return len(self._cameras)


__all__ = [
    "Episode",
    "EpisodeRunner",
    "FailedTrial",
    "SeenImages",
    "TrialBlock",
    "UnfitError",
    "require_same_robot",
    "run_blocks",
    "trial_blocks",
]
