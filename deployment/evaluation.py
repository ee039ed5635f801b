"""Closed-loop evaluation: seeded episodes in a simulator, success with Wilson intervals, a few of them filmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..configuration.embodiment import Embodiment
from ..hub_cards.intervals import wilson_interval
from .environments.registry import require_tasks
from .policy import Policy
from .worker_processes import LastEnvironment, worker_pool

FILM_EVERY = 4  # steps between two frames of a film
SUCCESS = ("success", "is_success")  # under which an info says so: ours, and other Gymnasium environments'
LARGEST_BLOCK = 8  # trials that a process runs before it hands them over


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
    environment: str | Callable[..., Any] = "metaworld",
    trials: int = 10,
    seed: int = 0,
    num_workers: int = 1,
    films_per_task: int = 0,
    blank_images: bool = False,
    environment_options: Mapping[str, Any] | None = None,
    embodiment: str | None = None,
) -> EvaluationResult:
    """Runs `trials` episodes of every task and counts successes: those in which the simulator says so at any step.

    Args:
        policy: a policy, or a function that makes one (needed, and pickled, when `num_workers` > 1; for example
            `functools.partial(PriorVLAPolicy.from_pretrained, folder)`).
        tasks: names, see `list_tasks(environment)`; of an environment of your own what you like, for example
            instructions.
        environment: a simulator's name, or a function that is called with a task and makes a Gymnasium environment of
            your own (pickled when `num_workers` > 1). Its observations have `state` (S,) and `images` {camera: (h, w,
            3) uint8}, its infos `success` or `is_success`, it ends its episodes, and it may have an `instruction`; else
            the policy is told the task. It renders when films are asked for.
        trials: episodes a task. Trial i of a task starts from a seed that depends on `seed` and i alone, so that every
            policy meets the same starts.
        num_workers: processes of one thread each; 1 runs here, with torch's threads. Results do not depend on it but
            for the rounding of another number of threads.
        films_per_task: so many first trials of every task are filmed.
        blank_images: every picture is black: what is left is what the policy does without looking.
        environment_options: further arguments of the environment's class or function.
        embodiment: the name by which the policy knows the environment's robot; default: the environment's own.

    Raises:
        ValueError: no task, an unknown task or simulator, a task named twice, `trials` below 1, or a policy of another
            embodiment than the environment's: another name, or other action or state dims; or infos that do not say
            whether an episode succeeded.
    """
    if isinstance(environment, str):
        require_tasks(environment, tasks)
    elif not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks={list(tasks)}: name at least one, and each once")
    if trials < 1:
        raise ValueError(f"trials={trials} must be at least 1")
    started = time.perf_counter()
    block = max(1, min(LARGEST_BLOCK, len(tasks) * trials // (2 * num_workers))) if num_workers > 1 else 1
    jobs = [
        _Job(
            environment,
            dict(environment_options or {}),
            task,
            seed,
            range(first, min(first + block, trials)),
            films_per_task,
            blank_images,
            embodiment,
        )
        for task in tasks
        for first in range(0, trials, block)
    ]
    episodes: dict[tuple[str, int], _Episode] = {}
    with tqdm(total=len(tasks) * trials, desc="evaluating", unit="episode") as progress:
        for finished in _run_jobs(policy, jobs, num_workers):
            episodes.update({(episode.task, episode.trial): episode for episode in finished})
            progress.update(len(finished))
            progress.set_postfix(success=str(sum(episode.success for episode in episodes.values())))
    results: dict[str, TaskResult] = {}
    for task in tasks:
        own = [episodes[task, trial] for trial in range(trials)]
        films = [episode.film for episode in own if episode.film is not None]
        results[task] = TaskResult(task, [episode.success for episode in own], films)
    return EvaluationResult(results, time.perf_counter() - started)


@dataclass(frozen=True)
class _Job:
    """A block of one task's trials."""

    environment: str | Callable[..., Any]
    options: dict[str, Any]
    task: str
    seed: int
    trials: range
    films: int
    blank_images: bool
    embodiment: str | None = None


@dataclass
class _Episode:
    task: str
    trial: int
    success: bool
    film: NDArray[np.uint8] | None


def _run_jobs(policy: Any, jobs: list[_Job], num_workers: int) -> Iterator[list[_Episode]]:
    """The episodes of every job; with several processes in the order in which the jobs end."""
    if num_workers <= 1:
        worker = _Worker(policy() if callable(policy) else policy)
        try:
            yield from map(worker.run, jobs)
        finally:
            worker.close()
        return
    if not callable(policy):
        raise ValueError(f"num_workers={num_workers} needs a function that makes the policy, for every process its own")
    with worker_pool(min(num_workers, len(jobs)), _prepare_worker, policy) as pool:
        yield from (future.result() for future in as_completed([pool.submit(_run_in_worker, job) for job in jobs]))


_process_worker: Callable[[], _Worker]  # in a worker process: makes its worker, once


def _prepare_worker(make_policy: Callable[[], Policy]) -> None:
    # The policy itself is made by the first job: an error in here would only be reported as a broken pool.
    global _process_worker
    torch.set_num_threads(1)
    _process_worker = cache(lambda: _Worker(make_policy()))


def _run_in_worker(job: _Job) -> list[_Episode]:
    return _process_worker().run(job)


class _Worker:
    """Runs jobs one after the other."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._environments = LastEnvironment()

    def run(self, job: _Job) -> list[_Episode]:
        environment = self._environments.get(job.environment, job.task, job.options)
        robot = getattr(environment.unwrapped, "embodiment", None)
        if robot is not None:
            _require_same_robot(self._policy.embodiment, robot, job)
        return [_run_episode(self._policy, environment, job, trial) for trial in job.trials]

    def close(self) -> None:
        self._environments.close()


def _require_same_robot(body: Embodiment, robot: Embodiment, job: _Job) -> None:
    if body.name != (job.embodiment or robot.name):
        raise ValueError(
            f"the policy drives {body.name!r}, {job.environment} has {robot.name!r}: pass embodiment= of a "
            "checkpoint that knows it"
        )
    for part in ("action", "state"):
        own, here = (getattr(entry, f"{part}_names") for entry in (body, robot))
        if len(own) != len(here):
            raise ValueError(
                f"{body.name!r} has {len(own)} {part} dims ({', '.join(own)}), {robot.name!r} of {job.environment} "
                f"{len(here)} ({', '.join(here)}): it is another robot"
            )


def _run_episode(policy: Policy, environment: Any, job: _Job, trial: int) -> _Episode:
    start_seed = job.seed * 100_003 + trial
    observation, info = environment.reset(seed=start_seed)
    session = policy.new_session(start_seed)
    instruction = getattr(environment.unwrapped, "instruction", job.task)
    film: list[NDArray[np.uint8]] = []
    success, terminated, truncated, step = False, False, False, 0
    while not (success or terminated or truncated):
        if trial < job.films and step % FILM_EVERY == 0:
            film.append(environment.render())
        seen = {**observation, "instruction": instruction}
        if job.blank_images:
            seen["images"] = BlankImages(observation["images"])
        action = policy.act([session], [seen])[0]
        observation, _, terminated, truncated, info = environment.step(action)
        success = any(bool(info.get(key)) for key in SUCCESS)
        step += 1
    if not info.keys() & set(SUCCESS):
        raise ValueError(f"{job.task!r}: the infos of this environment have no {' or '.join(SUCCESS)}: say it there")
    if film:
        film.append(environment.render())
    return _Episode(job.task, trial, success, np.stack(film) if film else None)


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
