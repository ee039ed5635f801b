"""What an evaluation leaves: `report.json` for programs, `report.html` with counts, films and failures for people."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..hub_cards.plots import success_by_task
from ..hub_cards.report import Report
from ..hub_cards.versions import installed_versions
from .evaluation import EvaluationResult
from .evaluation_arguments import REPORT_FILE
from .trial_records import TrialRecords

SHOWN_FILMS, SHOWN_STRIPS = 24, 60  # a page of more is too large to open; all lie beside it


def write_evaluation(result: EvaluationResult, settings: Mapping[str, Any], records: TrialRecords) -> Path:
    """Writes both reports into the records' folder and returns the page's path.

    `settings` go into both; their `robot` is the name of the arm. Pictures and films are those of `records`; of a task
    one film is on the page.
    """
    content = {"kind": "evaluation", **settings, **result.to_dict(), "versions": installed_versions()}
    content["episode_time_s"] = round(sum(record.seconds for record in records.finished.values()), 1)
    partial = records.folder / f".{REPORT_FILE}.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, records.folder / REPORT_FILE)
    return _page(result, settings, records).write(records.folder / "report.html")


def _page(result: EvaluationResult, settings: Mapping[str, Any], records: TrialRecords) -> Report:
    successes, trials = result.count()
    page = Report("Closed-loop evaluation", f"{successes} of {trials} episodes succeeded")
    arm = str(settings["robot"])
    if suites := result.suites():
        page.section("Success by suite")
        counted = {suite: result.count(tasks) for suite, tasks in suites.items()}
        rows = [[suite, arm, *row] for suite, row in zip(counted, _rows(result.to_dict()["suites"]), strict=True)]
        page.table(["suite", "robot", "tasks", "successes", "95 % interval"], _with_tasks(rows, suites))
        page.figure(success_by_task({arm: counted}), caption="Success by suite with 95 % intervals.")
    page.section("Success by task")
    counted_tasks = result.to_dict()
    everything = {**counted_tasks["tasks"], "all tasks": counted_tasks["overall"]}
    page.table(
        ["task", "successes", "95 % interval"],
        [[task, *row] for task, row in zip(everything, _rows(everything), strict=True)],
        "Wilson intervals; every trial has a start of its own, decided by the seed.",
    )
    counts = {task: (outcome.successes, len(outcome.outcomes)) for task, outcome in result.tasks.items()}
    for suite, tasks in (suites or {"": list(result.tasks)}).items():
        part = {task.removeprefix(f"{suite}/"): counts[task] for task in tasks}
        where = f" of {suite}" if suite else ""
        page.figure(success_by_task({arm: part}), caption=f"Success by task{where} with 95 % intervals.")
    _show_failures(page, result, records)
    _show_films(page, result, records)
    page.section("Settings")
    page.facts({**settings, **installed_versions()})
    return page


def _rows(counted: Mapping[str, Any]) -> list[list[str]]:
    """`successes / trials` and interval of every entry."""
    return [
        [f"{values['successes']} / {values['trials']}", "{:.0%} to {:.0%}".format(*values["interval"])]
        for values in counted.values()
    ]


def _with_tasks(rows: list[list[str]], suites: Mapping[str, list[str]]) -> list[list[Any]]:
    return [[suite, arm, len(suites[suite]), *others] for suite, arm, *others in rows]


def _show_failures(page: Report, result: EvaluationResult, records: TrialRecords) -> None:
    """Of every task the first trial that failed, as a strip of frames."""
    strips = [(task, *strip) for task in result.tasks if (strip := records.strip(task)) is not None]
    if not strips:
        return
    page.section("Failures")
    told = "The first failed trial of every task, from its start to its end."
    if len(strips) > SHOWN_STRIPS:
        told += f" {len(strips) - SHOWN_STRIPS} more lie in `strips`."
    page.text(told)
    for task, trial, file in strips[:SHOWN_STRIPS]:
        record = records.finished[task, trial]
        page.text(f"**{task}**, trial {trial}: no success in {record.steps} steps")
        page.image(file)


def _show_films(page: Report, result: EvaluationResult, records: TrialRecords) -> None:
    filmed = [
        record for record in records.finished.values() if record.film and (records.folder / record.film).is_file()
    ]
    first = {
        task: min((r for r in filmed if r.task == task), key=lambda r: r.trial, default=None) for task in result.tasks
    }
    shown = [record for record in first.values() if record is not None][:SHOWN_FILMS]
    if not shown:
        return
    page.section("Rollouts")
    if len(shown) < len(filmed):
        page.text(f"{len(shown)} of {len(filmed)} films; all lie in `films`.")
    for record in shown:
        assert record.film is not None
        outcome = "success" if record.success else "failure"
        page.video(records.folder / record.film, caption=f"{record.task}, trial {record.trial}: {outcome}")


__all__ = ["write_evaluation"]
