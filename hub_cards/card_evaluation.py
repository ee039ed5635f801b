"""Closed-loop results on a card: rows with intervals, the Hub's `model-index`, and what a report of ours says."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from .card_text import flattened
from .intervals import wilson_interval
from .privacy import scrub

# What a card says of a report's settings.
PROTOCOL = ("embodiment", "seed", "max_episode_steps", "execute_steps", "action_limits")
BY_ROBOT = ("embodiment", "action_limits")  # of these, what each of several robots has

OWN_BODY = "'s own"  # what a report ends its `embodiment` with when none was asked for


def read_evaluation(
    report: str | Path, checkpoints: Sequence[str | Path] = (), embodiments: Sequence[str] = ()
) -> dict[str, Any]:
    """The `evaluation` of `create_card` from the `report.json` of `priorvla evaluate`, or the folder that it is in.

    Of several robots each has its own row of every task.

    Args:
        checkpoints: what the evaluated one may be called: Hub ids and folders, whose last component counts. None: any.
        embodiments: the bodies that it may have driven. None: any.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is of something else, of another checkpoint or body, of a policy that was shown black
            pictures, or without some of its trials.
    """
    file = Path(report)
    file = file / "report.json" if file.is_dir() else file
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: name the output folder of priorvla evaluate")
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("kind") != "evaluation":
        raise ValueError(f"{file} is no evaluation: name the output folder of priorvla evaluate")
    if content.get("blank_images"):
        raise ValueError(f"{file} is of the policy with black pictures (--blank-images), not of what it can do")
    if content.get("missing"):
        raise ValueError(f"{file} is incomplete, {content['missing']} trials failed to end: run the evaluation again")
    told, names = Path(content.get("checkpoint") or "").name, {Path(place).name for place in checkpoints}
    if told and names and told not in names:
        raise ValueError(f"{file} is an evaluation of {told}, not of {Path(checkpoints[0]).name}: name that one's")
    robots = content.get("robots") or {"": content}  # older reports are of one, and say there how it was driven
    for robot in robots.values():
        body = robot.get("embodiment")
        if body and embodiments and body not in embodiments and not body.endswith(OWN_BODY):
            raise ValueError(f"{file} is an evaluation of {body}, a body that is not among {', '.join(embodiments)}")
    if len(robots) == 1:
        content = {**content, **next(iter(robots.values()))}
        rows = content["tasks"]
    else:
        content |= {name: {robot: own.get(name) for robot, own in robots.items()} for name in BY_ROBOT}
        rows = {f"{task} ({robot})": own["tasks"][task] for task in content["tasks"] for robot, own in robots.items()}
    return {
        "environment": content.get("environment"),
        "tasks": {task: {key: row[key] for key in ("successes", "trials")} for task, row in rows.items()},
        **{name: content[name] for name in PROTOCOL if content.get(name) is not None},
    }


def task_rows(evaluation: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """One row a task and, for several, one for all together; rates and Wilson intervals computed from the counts."""
    results = dict((evaluation or {}).get("tasks", {}))
    if len(results) > 1:
        totals = {key: sum(result[key] for result in results.values()) for key in ("successes", "trials")}
        results["all tasks"] = totals
    rows = []
    for task, result in results.items():
        successes, trials = int(result["successes"]), int(result["trials"])
        low, high = wilson_interval(successes, trials)
        rows.append(
            {
                "task": scrub(task),
                "successes": successes,
                "trials": trials,
                "rate": successes / trials,
                "interval": [round(low, 4), round(high, 4)],
            }
        )
    return rows


def protocol(evaluation: Mapping[str, Any] | None) -> dict[str, str]:
    """How it was measured: every key but the environment and the tasks."""
    return flattened(scrub({k: v for k, v in (evaluation or {}).items() if k not in ("environment", "tasks")}))


def model_index(evaluation: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[EvalResult]:
    """The rows as the Hub reads them, with trials and intervals as arguments of the metric."""
    environment = scrub(str(evaluation.get("environment") or "simulation"))
    return [
        EvalResult(
            task_type="robotics",
            task_name="closed-loop control",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", environment.lower()).strip("-") or "simulation",
            dataset_name=environment,
            dataset_config=row["task"],
            metric_type="success_rate",
            metric_name="Success rate, %",
            metric_value=round(100 * row["rate"], 2),
            metric_args={key: row[key] for key in ("successes", "trials", "interval")},
        )
        for row in rows
    ]


__all__ = ["model_index", "protocol", "read_evaluation", "task_rows"]
