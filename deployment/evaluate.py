"""`priorvla evaluate`: a checkpoint in, report.html, report.json and films out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..hub_cards.card import require_checkpoint
from ..hub_cards.plots import success_by_task
from ..hub_cards.report import Report
from .evaluation import EvaluationResult, evaluate_policy, save_films
from .policy import PriorVLAPolicy

VERSIONED = ("priorvla", "torch", "transformers", "diffusers")


def evaluate_checkpoint(
    checkpoint: str,
    env: str,
    tasks: Sequence[str],
    trials: int,
    output_dir: Path,
    *,
    execute_steps: int | None = None,
    max_episode_steps: int = 200,
    films: int = 1,
    blank_images: bool = False,
    backbone: str = "auto",
    workers: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> EvaluationResult:
    """Evaluates a policy checkpoint in closed loop and writes the report into `output_dir`; see `evaluate_policy`.

    Raises ValueError before anything is loaded when `trials` or `workers` is below 1 or `output_dir` has a report.
    """
    for name, value in (("--trials", trials), ("--workers", workers), ("--max-episode-steps", max_episode_steps)):
        if value < 1:
            raise ValueError(f"{name} {value} must be at least 1")
    require_checkpoint(checkpoint, "checkpoint")
    if (output_dir / "report.json").exists():
        raise ValueError(f"--output-dir {output_dir} already has a report: choose another folder")
    make_policy = partial(
        PriorVLAPolicy.from_pretrained, checkpoint, backbone=backbone, device=device, execute_steps=execute_steps
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
        environment_options={"max_episode_steps": max_episode_steps},
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    settings = {
        "checkpoint": checkpoint,
        "environment": env,
        "seed": seed,
        "max_episode_steps": max_episode_steps,
        "execute_steps": execute_steps,
        "blank_images": blank_images,
    }
    content = {"kind": "evaluation", **settings, **result.to_dict(), "versions": installed_versions()}
    (output_dir / "report.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _write_report(result, settings, save_films(result, output_dir / "films"), output_dir / "report.html")
    successes, count = result.count()
    low, high = content["overall"]["interval"]
    print(f"{successes} of {count} episodes succeeded (95 % interval {low:.0%} to {high:.0%})")
    print(f"Report: {output_dir / 'report.html'}", file=sys.stderr)
    return result


def installed_versions() -> dict[str, str]:
    return {name: version(name) for name in VERSIONED}


def success_table(results: dict[str, EvaluationResult]) -> tuple[list[str], list[list[Any]]]:
    """Headers and rows, a task a row and one more for all, of results by arm, for `Report.table`."""
    tasks = list(next(iter(results.values())).tasks)
    rows: list[list[Any]] = []
    for task in [*tasks, None]:
        row: list[Any] = [task or "all tasks"]
        for result in results.values():
            values = result.tasks[task].to_dict() if task else result.to_dict()["overall"]
            low, high = values["interval"]
            row += [f"{values['successes']} / {values['trials']}", f"{low:.0%} to {high:.0%}"]
        rows.append(row)
    headers = ["task"]
    for arm in results:
        headers += [arm, "95 % interval"]
    return headers, rows


def _write_report(result: EvaluationResult, settings: dict[str, Any], films: dict[str, list[Path]], file: Path) -> None:
    successes, trials = result.count()
    report = Report("Closed-loop evaluation", f"{successes} of {trials} episodes succeeded")
    report.section("Success")
    headers, rows = success_table({"successes": result})
    report.table(headers, rows, caption="Wilson intervals; every trial has a start of its own, decided by the seed.")
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


__all__ = ["evaluate_checkpoint", "installed_versions", "success_table"]
