"""`priorvla evaluate`: a checkpoint in, report.html, report.json and films out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..hub_cards.plots import success_by_task
from ..hub_cards.privacy import scrub
from ..hub_cards.report import Report
from ..hub_cards.versions import installed_versions
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .environments.registry import make_environment
from .evaluation import EvaluationResult, evaluate_policy, save_films
from .evaluation_arguments import REPORT_FILE, check_evaluation
from .policy import PriorVLAPolicy


def evaluate_checkpoint(
    checkpoint: str,
    env: str,
    tasks: Sequence[str],
    trials: int,
    output_dir: Path,
    *,
    execute_steps: int | None = None,
    max_episode_steps: int | None = None,
    films: int = 1,
    blank_images: bool = False,
    backbone: str = "auto",
    workers: int = 1,
    seed: int = 0,
    device: str = "cpu",
    embodiment: str | None = None,
) -> EvaluationResult:
    """Evaluates a policy checkpoint in closed loop and writes the report into `output_dir`; see `evaluate_policy`.

    `embodiment` is the checkpoint's name for the simulator's robot, by default the simulator's own. The report names
    the checkpoint by its Hub id or relative path, of an absolute path the last component alone.

    Raises ValueError or FileNotFoundError before anything is loaded; see `check_evaluation`.
    """
    check_evaluation(
        checkpoint,
        env,
        tasks,
        trials,
        output_dir,
        execute_steps=execute_steps,
        max_episode_steps=max_episode_steps,
        films=films,
        workers=workers,
        seed=seed,
        device=device,
    )
    make_policy = partial(
        PriorVLAPolicy.from_pretrained,
        checkpoint,
        backbone=backbone,
        device=device,
        execute_steps=execute_steps,
        embodiment=embodiment or _driven(checkpoint, env, tasks[0]),
    )
    result = evaluate_policy(
        make_policy,
        tasks,
        environment=env,
        trials=trials,
        seed=seed,
        num_workers=workers,
        films_per_task=films,
        blank_images=blank_images,
        environment_options={} if max_episode_steps is None else {"max_episode_steps": max_episode_steps},
        embodiment=embodiment,
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    settings = {
        "checkpoint": scrub(checkpoint),
        "environment": env,
        "embodiment": embodiment or f"{env}'s own",
        "seed": seed,
        "max_episode_steps": max_episode_steps or f"{env}'s own",
        "execute_steps": execute_steps,
        "blank_images": blank_images,
    }
    content = {"kind": "evaluation", **settings, **result.to_dict(), "versions": installed_versions()}
    (output_dir / REPORT_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _write_report(result, settings, save_films(result, output_dir / "films"), output_dir / "report.html")
    successes, count = result.count()
    low, high = content["overall"]["interval"]
    print(f"{successes} of {count} episodes succeeded (95 % interval {low:.0%} to {high:.0%})")
    print(f"Report: {output_dir / 'report.html'}", file=sys.stderr)
    return result


def _driven(checkpoint: str, env: str, task: str) -> str | None:
    """The name of the simulator's robot, where the checkpoint knows several."""
    if len(PriorVLAProcessor.from_pretrained(checkpoint).embodiments) == 1:
        return None
    environment = make_environment(env, task)
    try:
        return environment.embodiment.name
    finally:
        environment.close()


def _success_rows(result: EvaluationResult) -> list[list[str]]:
    """A row a task, and one more for all: name, successes of trials, interval."""
    counted = result.to_dict()
    rows = []
    for name, values in [*counted["tasks"].items(), ("all tasks", counted["overall"])]:
        low, high = values["interval"]
        rows.append([name, f"{values['successes']} / {values['trials']}", f"{low:.0%} to {high:.0%}"])
    return rows


def _write_report(result: EvaluationResult, settings: dict[str, Any], films: dict[str, list[Path]], file: Path) -> None:
    successes, trials = result.count()
    report = Report("Closed-loop evaluation", f"{successes} of {trials} episodes succeeded")
    report.section("Success")
    caption = "Wilson intervals; every trial has a start of its own, decided by the seed."
    report.table(["task", "successes", "95 % interval"], _success_rows(result), caption)
    counts = {task: (outcome.successes, len(outcome.outcomes)) for task, outcome in result.tasks.items()}
    report.figure(success_by_task({"policy": counts}), caption="Success by task with 95 % intervals.")
    if films:
        report.section("Rollouts")
        for task, files in films.items():
            for film in files:
                report.video(film, caption=f"{task}: {film.stem.rsplit('-', 1)[-1]}")
    report.section("Settings")
    report.facts({**settings, **installed_versions()})
    report.write(file)


__all__ = ["evaluate_checkpoint"]
