"""Closed-loop evaluation: seeded episodes in a simulator, success with Wilson intervals, a few of them filmed."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..hub_cards.intervals import wilson_interval
from .environments.registry import make_environment
from .policy import Policy

FILM_EVERY = 4  # steps between two frames of a film


@dataclass
class TaskResult:
    """Outcomes of one task's trials, in the order of their start seeds, and frames of those that were filmed."""

    task: str
    outcomes: list[bool] = field(default_factory=list)
    films: list[NDArray[np.uint8]] = field(default_factory=list)

    @property
    def successes(self) -> int:
        return sum(self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        trials = len(self.outcomes)
        interval = list(wilson_interval(self.successes, trials))
        return {"successes": self.successes, "trials": trials, "interval": interval, "outcomes": self.outcomes}


@dataclass
class EvaluationResult:
    """Results by task; `wall_time` in seconds."""

    tasks: dict[str, TaskResult]
    wall_time: float

    def count(self, tasks: Sequence[str] | None = None) -> tuple[int, int]:
        """Successes and trials over `tasks` (default: all)."""
        chosen = [self.tasks[task] for task in (tasks or self.tasks)]
        return sum(result.successes for result in chosen), sum(len(result.outcomes) for result in chosen)

    def to_dict(self) -> dict[str, Any]:
        """Per task and overall: `successes`, `trials`, `interval` (Wilson, 95 %)."""
        successes, trials = self.count()
        return {
            "tasks": {task: result.to_dict() for task, result in self.tasks.items()},
            "overall": {"successes": successes, "trials": trials, "interval": list(wilson_interval(successes, trials))},
            "wall_time_s": round(self.wall_time, 1),
        }


def evaluate_policy(
    policy: Policy | Callable[[], Policy],
    tasks: Sequence[str],
    *,
    environment: str = "metaworld",
    trials: int = 10,
    seed: int = 0,
    num_workers: int = 1,
    films_per_task: int = 0,
    blank_images: bool = False,
    environment_options: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Runs `trials` episodes of every task and counts successes: those in which the simulator says so at any step.

    Args:
        policy: a policy, or a function that makes one (needed, and pickled, when `num_workers` > 1; for example
            `functools.partial(PriorVLAPolicy.from_pretrained, folder)`).
        tasks: names, see `list_tasks(environment)`.
        trials: episodes a task. Trial i of a task starts from a seed that depends on `seed` and i alone, so that every
            policy meets the same starts.
        num_workers: processes of one thread each; results do not depend on it.
        films_per_task: so many first trials of every task are filmed.
        blank_images: every picture is black: what is left is what the policy does without looking.
        environment_options: arguments of the environment's class.

    Raises:
        ValueError: on an unknown task or simulator, or a policy of another embodiment than the environment's.
    """
    started = time.perf_counter()
    jobs = [
        _Job(environment, dict(environment_options or {}), task, seed, trials, films_per_task, blank_images)
        for task in tasks
    ]
    results: dict[str, TaskResult] = {}
    with tqdm(total=len(jobs) * trials, desc="evaluating", unit="episode") as progress:
        for result in _run_jobs(policy, jobs, num_workers):
            results[result.task] = result
            progress.update(len(result.outcomes))
            progress.set_postfix(success=f"{sum(r.successes for r in results.values())}")
    return EvaluationResult({task: results[task] for task in tasks}, time.perf_counter() - started)


@dataclass(frozen=True)
class _Job:
    environment: str
    options: dict[str, Any]
    task: str
    seed: int
    trials: int
    films: int
    blank_images: bool


def _run_jobs(policy: Any, jobs: list[_Job], num_workers: int) -> Any:
    if num_workers <= 1:
        made = policy() if callable(policy) else policy
        yield from (_run_task(made, job) for job in jobs)
        return
    if not callable(policy):
        raise ValueError(f"num_workers={num_workers} needs a function that makes the policy, for every process its own")
    # one thread a process: on few cores two processes of one thread beat one process of two
    context = multiprocessing.get_context("spawn")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with ProcessPoolExecutor(num_workers, context, _start_worker, (policy,)) as pool:
        futures = [pool.submit(_run_in_worker, job) for job in jobs]
        try:
            yield from (future.result() for future in as_completed(futures))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_make_policy: Callable[[], Policy]  # in a worker: makes its policy, once


def _start_worker(make_policy: Callable[[], Policy]) -> None:
    # The policy itself is made by the first job: an error in here would only be reported as a broken pool.
    global _make_policy
    torch.set_num_threads(1)
    _make_policy = cache(make_policy)


def _run_in_worker(job: _Job) -> TaskResult:
    return _run_task(_make_policy(), job)


def _run_task(policy: Policy, job: _Job) -> TaskResult:
    environment = make_environment(job.environment, job.task, **job.options)
    try:
        if environment.embodiment.name != policy.embodiment.name:
            raise ValueError(
                f"the policy drives {policy.embodiment.name!r}, {job.environment} has {environment.embodiment.name!r}: "
                "pass embodiment= of a checkpoint that knows it"
            )
        result = TaskResult(job.task)
        for trial in range(job.trials):
            success, film = _run_episode(policy, environment, job, trial)
            result.outcomes.append(success)
            if film:
                result.films.append(np.stack(film))
        return result
    finally:
        environment.close()


def _run_episode(policy: Policy, environment: Any, job: _Job, trial: int) -> tuple[bool, list[NDArray[np.uint8]]]:
    start_seed = job.seed * 100_003 + trial
    observation, info = environment.reset(seed=start_seed)
    session = policy.new_session(start_seed)
    film: list[NDArray[np.uint8]] = []
    success, truncated, step = False, False, 0
    while not (success or truncated):
        if trial < job.films and step % FILM_EVERY == 0:
            film.append(environment.render())
        seen = {**observation, "instruction": environment.instruction}
        if job.blank_images:
            seen["images"] = BlankImages(observation["images"])
        action = policy.act([session], [seen])[0]
        observation, _, _, truncated, info = environment.step(action)
        success = bool(info["success"])
        step += 1
    if film:
        film.append(environment.render())
    return success, film


class BlankImages(Mapping[str, NDArray[np.uint8]]):
    """The same cameras, every picture black."""

    def __init__(self, images: Mapping[str, NDArray[np.uint8]]) -> None:
        self._images = images

    def __getitem__(self, camera: str) -> NDArray[np.uint8]:
        return np.zeros_like(self._images[camera])

    def __iter__(self) -> Any:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)


def save_films(result: EvaluationResult, folder: str | Path) -> dict[str, list[Path]]:
    """Writes every film as MP4 into `folder`; task -> files."""
    from .videos import write_video

    Path(folder).mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Path]] = {}
    for task, outcome in result.tasks.items():
        for index, film in enumerate(outcome.films):
            file = Path(folder) / f"{task}-{index}-{'success' if outcome.outcomes[index] else 'failure'}.mp4"
            files.setdefault(task, []).append(write_video(file, film, fps=20))
    return files


__all__ = ["EvaluationResult", "TaskResult", "evaluate_policy", "save_films"]
