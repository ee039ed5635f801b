"""Collects demonstrations from a simulator's scripted experts into one LeRobot dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..configuration.embodiment import Embodiment
from ..hub_cards.card import require_license
from ..training.data.lerobot_writer import LeRobotDatasetWriter
from ..training.data.picture_interval import COLLECTION_FILE
from ..training.dataset_cards import write_dataset_card
from .collection_card import collection_origin, units_of
from .demonstrations import DemonstrationJob, DemonstrationSettings, make_demonstrations
from .environments.registry import make_environment, require_experts, require_tasks

ATTEMPTS = 10  # starts tried for one demonstration; Meta-World's experts solve 98 % of theirs


@dataclass
class CollectionSummary:
    """What was collected, as `meta/collection.json` has it.

    Args:
        environment, seed, noise, environment_options: as passed to `collect`.
        embodiment: the robot's name.
        image_size, image_every: side of a picture in pixels, and steps from one to the next; None and 1 without any.
        episodes, frames: totals of the dataset.
        success_rates: per task, solved starts / tried starts of the expert (noisy ones included).
        success_required: whether episodes without success were left out; where not, success is not the criterion.
        starts: per episode, in the dataset's order: `task`, `start_seed` (the environment's reset seed), `noise`.
    """

    environment: str
    seed: int
    embodiment: str = ""
    environment_options: dict[str, Any] = field(default_factory=dict)
    noise: float | None = None
    image_size: int | None = None
    image_every: int = 1
    episodes: int = 0
    frames: int = 0
    success_rates: dict[str, float] = field(default_factory=dict)
    success_required: bool = True
    starts: list[dict[str, Any]] = field(default_factory=list)


def collect(
    output_dir: str | Path,
    tasks: Sequence[str],
    episodes_per_task: int,
    *,
    environment: str = "metaworld",
    seed: int = 0,
    images: bool = True,
    noise: float = 0.15,
    steps_after_success: int | None = None,
    max_episode_steps: int | None = None,
    num_workers: int = 2,
    overwrite: bool = False,
    image_size: int = 112,
    image_every: int = 1,
    video: bool = False,
    environment_options: Mapping[str, Any] | None = None,
    license: str | None = None,  # noqa: A002, the Hub's word for it
) -> Path:
    """Records solved episodes of the scripted experts of `tasks` and returns the dataset's folder.

    Only successful episodes are kept, and a start that the expert does not solve is replaced by the next, unless the
    environment says that success is not required (PushT's pushes are motion, not solutions). The result depends on the
    seed, not on `num_workers`, and every task's episodes not on the other tasks; the same call gives the same dataset,
    byte for byte. A summary lies in `meta/collection.json` (`load_collection_summary`); a card with a plot, `README.md`
    and `motion.png`, follows when the dataset is complete.

    Args:
        output_dir: the dataset's folder, which appears when the dataset is complete.
        tasks: task names of the simulator `environment`.
        episodes_per_task: demonstrations of each task.
        environment: a simulator, see `deployment.environments`.
        seed: decides starts and noise.
        images: without them no renderer is made, and the dataset has motion only.
        noise: standard deviation of the Gaussian noise added to every executed action of every second demonstration, in
            units of the environment's `noise_scale`; labels stay the expert's clean actions. 0 switches it off.
        steps_after_success: steps recorded after the task is first solved. Default: the environment's own.
        max_episode_steps: an episode that is not solved by then is a failure; best what `evaluate` allows. Default:
            the environment's own.
        num_workers: processes, one thread each. With more than one, a script needs the usual
            `if __name__ == "__main__":` around its call.
        overwrite: replace a dataset that is already there.
        image_size: side of the pictures in pixels.
        image_every: a picture is drawn at every so many steps of an episode, from its first, and stands until the next,
            as of a camera that is slower than the robot: collecting takes less time, and a training whose windows start
            there (`--frame-stride`) misses nothing. One whose windows start elsewhere is refused.
        video: H.264 videos instead of PNG images.
        environment_options: further arguments of the environment's class, for example `{"robot": "ur5e"}`.
        license: of the data, by the Hub's identifier, for the card; it names none by default, because they are yours.

    Raises:
        ValueError: on an unknown task or simulator, a task named twice or without an expert, a malformed licence, or a
            number out of range.
        FileExistsError: `output_dir` is there and `overwrite` is not set.
        RuntimeError: a task's expert failed too often, with the rate; or a worker process died.
    """
    tasks = list(tasks)
    if license is not None:
        require_license(license)
    _validate(
        tasks,
        environment,
        episodes_per_task=episodes_per_task,
        seed=seed,
        noise=noise,
        steps_after_success=steps_after_success,
        max_episode_steps=max_episode_steps,
        num_workers=num_workers,
        image_every=image_every,
    )
    settings = DemonstrationSettings(seed, images, noise, steps_after_success, ATTEMPTS, image_every)
    options = {"render": images, "image_size": image_size, **(environment_options or {})}
    if max_episode_steps is not None:
        options["max_episode_steps"] = max_episode_steps
    jobs = [
        DemonstrationJob(environment, options, task, index, settings)
        for task in tasks
        for index in range(episodes_per_task)
    ]
    body, success_required, longest = _described(environment, tasks[0], options)
    cameras = dict.fromkeys(body.cameras, (image_size, image_size)) if images else {}
    summary = CollectionSummary(
        environment,
        seed,
        embodiment=body.name,
        environment_options=dict(environment_options or {}),
        noise=noise,
        image_size=image_size if cameras else None,
        image_every=image_every if cameras else 1,
        success_required=success_required,
    )
    attempts, solved = dict.fromkeys(tasks, 0), dict.fromkeys(tasks, 0)
    with (
        LeRobotDatasetWriter(output_dir, body, cameras, overwrite=overwrite, video=video) as writer,
        closing(make_demonstrations(jobs, num_workers)) as demonstrations,
    ):
        for job, demonstration in zip(jobs, tqdm(demonstrations, "collect", len(jobs), unit="episode"), strict=True):
            task = job.task
            if demonstration is None:
                raise RuntimeError(
                    f"task {task!r}: the expert failed {ATTEMPTS} starts in a row (it solved {job.index} of "
                    f"{attempts[task] + ATTEMPTS} so far): raise max_episode_steps={longest}, lower "
                    f"noise={noise}, or leave the task out"
                )
            attempts[task] += demonstration.failures + 1
            solved[task] += demonstration.solved
            writer.add_episode(
                demonstration.states, demonstration.actions, demonstration.instruction, demonstration.images or None
            )
            summary.frames += len(demonstration.actions)
            summary.starts.append({"task": task, "start_seed": demonstration.start_seed, "noise": demonstration.noise})
        summary.episodes = len(jobs)
        summary.success_rates = {task: solved[task] / attempts[task] for task in tasks}
        writer.add_file(COLLECTION_FILE, json.dumps(asdict(summary), indent=2) + "\n")
    origin = collection_origin(
        environment,
        summary.success_rates,
        success_required=success_required,
        noise=noise,
        seed=seed,
        image_every=summary.image_every,
        options=environment_options,
    )
    write_dataset_card(output_dir, license=license, origin=origin, units=units_of(body.name))
    return Path(output_dir)


def load_collection_summary(dataset: str | Path) -> CollectionSummary:
    """Reads the `meta/collection.json` of a collected dataset. Raises FileNotFoundError where there is none."""
    return CollectionSummary(**json.loads((Path(dataset) / COLLECTION_FILE).read_text(encoding="utf-8")))


def _validate(tasks: list[str], environment: str, **numbers: float | None) -> None:
    require_tasks(environment, tasks)
    require_experts(environment, tasks)
    for name, value in numbers.items():
        least = 0 if name in ("seed", "noise", "steps_after_success") else 1
        if value is not None and not value >= least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def _described(environment: str, task: str, options: dict[str, Any]) -> tuple[Embodiment, bool, int]:
    """The body of an environment, whether its episodes need success, and how long they may last."""
    made = make_environment(environment, task, **options)
    try:
        return made.embodiment, made.success_required, made.max_episode_steps
    finally:
        made.close()


__all__ = ["CollectionSummary", "collect", "load_collection_summary"]
