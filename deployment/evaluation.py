"""Closed-loop evaluation: seeded episodes in a simulator, success with Wilson intervals, a few of them filmed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..hub_cards.intervals import wilson_interval
from .environments.registry import require_tasks
from .episodes import FailedTrial, TrialBlock, run_blocks, trial_blocks
from .policy import Policy
from .task_files import task_file_name
from .trial_records import TrialRecords


@dataclass
class TaskResult:
    """Outcomes of one task's trials, in the order of their start seeds, and frames of those that were filmed.

    Trials without an outcome are left out.
    """

    task: str
    outcomes: list[bool] = field(default_factory=list)
    films: list[NDArray[np.uint8]] = field(default_factory=list)
    suite: str = ""

    @property
    def successes(self) -> int:
        return sum(self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        return {**_counted(self.successes, len(self.outcomes)), "outcomes": self.outcomes}


@dataclass
class EvaluationResult:
    """Results by task; `wall_time` in seconds; the trials that are `missing`, because they failed to end."""

    tasks: dict[str, TaskResult]
    wall_time: float
    missing: list[FailedTrial] = field(default_factory=list)

    def count(self, tasks: Sequence[str] | None = None) -> tuple[int, int]:
        """Successes and trials over `tasks` (default: all)."""
        chosen = [self.tasks[task] for task in (tasks or self.tasks)]
        return sum(result.successes for result in chosen), sum(len(result.outcomes) for result in chosen)

    def suites(self) -> dict[str, list[str]]:
        """Suite -> its tasks, in a simulator that has suites."""
        suites: dict[str, list[str]] = {}
        for task, result in self.tasks.items():
            if result.suite:
                suites.setdefault(result.suite, []).append(task)
        return suites

    def counts(self) -> dict[str, Any]:
        """Per task, per suite and overall: `successes`, `trials`, `interval` (Wilson, 95 %; None without a trial)."""
        return {
            "tasks": {task: result.to_dict() for task, result in self.tasks.items()},
            "suites": {suite: _counted(*self.count(tasks)) for suite, tasks in self.suites().items()},
            "overall": _counted(*self.count()),
        }

    def to_dict(self) -> dict[str, Any]:
        """The counts, and `wall_time_s`."""
        return {**self.counts(), "wall_time_s": round(self.wall_time, 1)}


def pooled(results: Iterable[EvaluationResult]) -> EvaluationResult:
    """The trials of several robots together: of every task the outcomes of one robot after the other."""
    tasks: dict[str, TaskResult] = {}
    missing: list[FailedTrial] = []
    wall_time = 0.0
    for result in results:
        wall_time += result.wall_time
        for task, own in result.tasks.items():
            there = tasks.setdefault(task, TaskResult(task, suite=own.suite))
            there.outcomes += own.outcomes
            there.films += own.films
        missing += result.missing
    return EvaluationResult(tasks, wall_time, missing)


class IncompleteEvaluationError(RuntimeError):
    """Some trials failed to end. `result` has the others' outcomes, and which are `missing` and why."""

    def __init__(self, result: EvaluationResult) -> None:
        first = result.missing[0]
        number, all_trials = len(result.missing), len(result.missing) + result.count()[1]
        super().__init__(
            f"{number} of {all_trials} trials failed to end, the first of them {first.task!r}, trial {first.trial}: "
            f"{first.error}; mend that, and the same call runs what is missing"
        )
        self.add_note(first.trace)
        self.result = result


def _counted(successes: int, trials: int) -> dict[str, Any]:
    interval = list(wilson_interval(successes, trials)) if trials else None
    return {"successes": successes, "trials": trials, "interval": interval}


def evaluate_policy(
    policy: Policy | Callable[[], Policy],
    tasks: Sequence[str],
    *,
    environment: str | Callable[..., Any] = "metaworld",
    trials: int = 10,
    seed: int = 0,
    num_workers: int = 1,
    batch_size: int = 1,
    films_per_task: int = 0,
    blank_images: bool = False,
    environment_options: Mapping[str, Any] | None = None,
    embodiment: str | None = None,
    records: TrialRecords | None = None,
    robot: str = "",
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
            the policy is told the task. It renders when films are asked for. Pictures of cameras that the policy does
            not have are never looked at.
        trials: episodes a task. Trial i of a task starts from a seed that depends on `seed` and i alone, so that every
            policy meets the same starts.
        num_workers: processes of one thread each; 1 runs here, with torch's threads. Results do not depend on it but
            for the rounding of another number of threads.
        batch_size: episodes of a task that a process runs side by side, each in an environment of its own; what they
            need next is predicted in one batch. Results do not depend on it but for the batch's rounding.
        films_per_task: so many first trials of every task are filmed.
        blank_images: every picture is black: what is left is what the policy does without looking.
        environment_options: further arguments of the environment's class or function.
        embodiment: the name by which the policy knows the environment's robot; default: the environment's own.
        records: finished trials are taken from there, and every other one is written there when it ends, so that an
            evaluation which is killed goes on. Films and strips of failures (where films are asked for) are files
            there, and not in the result.
        robot: whose trials these are in `records` that have those of several.

    Raises:
        IncompleteEvaluationError: trials in which environment or policy raised; all others have been run.
        ValueError: no task, an unknown task or simulator, a task named twice, `trials` below 1, or a policy of another
            embodiment than the environment's: another name, other action or state dims, or a camera that is not there;
            or infos that do not say whether an episode succeeded.
    """
    if isinstance(environment, str):
        require_tasks(environment, tasks)
    elif not tasks or len(set(tasks)) < len(tasks):
        raise ValueError(f"tasks={list(tasks)}: name at least one, and each once")
    for name, value in {"trials": trials, "batch_size": batch_size}.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    suites = {task: task.rpartition("/")[0] if isinstance(environment, str) else "" for task in tasks}
    started = time.perf_counter()
    outcomes = {} if records is None else records.require(tasks, trials, robot)
    to_run = {task: [trial for trial in range(trials) if (task, trial) not in outcomes] for task in tasks}
    failed: list[FailedTrial] = []
    like = TrialBlock(
        environment,
        dict(environment_options or {}),
        task="",
        seed=seed,
        trials=(),
        films=films_per_task,
        strips=records is not None and films_per_task > 0,
        blank_images=blank_images,
        embodiment=embodiment,
    )
    films: dict[tuple[str, int], NDArray[np.uint8]] = {}
    blocks = trial_blocks(tasks, to_run, num_workers, like, batch_size)
    doing = f"evaluating {robot}".rstrip()
    with (
        tqdm(total=len(tasks) * trials, initial=len(outcomes), desc=doing, unit="episode") as progress,
        closing(run_blocks(policy, blocks, num_workers, batch_size)) as episodes,
    ):
        for episode in episodes:
            progress.update()
            if isinstance(episode, FailedTrial):
                failed.append(episode)
                progress.set_postfix(success=str(sum(outcomes.values())), failed=str(len(failed)))
                continue
            outcomes[episode.task, episode.trial] = episode.success
            if records is not None:
                records.add(episode, robot)
            elif episode.film is not None:
                films[episode.task, episode.trial] = episode.film
            progress.set_postfix(success=str(sum(outcomes.values())))
    results = {
        task: TaskResult(
            task,
            [outcomes[task, trial] for trial in range(trials) if (task, trial) in outcomes],
            [films[task, trial] for trial in range(trials) if (task, trial) in films],
            suites[task],
        )
        for task in tasks
    }
    failed.sort(key=lambda one: (tasks.index(one.task), one.trial))
    result = EvaluationResult(results, time.perf_counter() - started, failed)
    if failed:
        raise IncompleteEvaluationError(result)
    return result


def save_films(result: EvaluationResult, folder: str | Path) -> dict[str, list[Path]]:
    """Writes every film as MP4 into `folder`; task -> files."""
    from .videos import write_video

    Path(folder).mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Path]] = {}
    for task, outcome in result.tasks.items():
        for index, film in enumerate(outcome.films):
            file = (
                Path(folder)
                / f"{task_file_name(task)}-{index}-{'success' if outcome.outcomes[index] else 'failure'}.mp4"
            )
            files.setdefault(task, []).append(write_video(file, film, fps=20))
    return files


__all__ = [
    "EvaluationResult",
    "IncompleteEvaluationError",
    "TaskResult",
    "evaluate_policy",
    "pooled",
    "save_films",
]
