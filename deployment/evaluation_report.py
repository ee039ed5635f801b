"""What an evaluation leaves: `report.json` for programs, `report.html` with counts, films and failures for people."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..hub_cards.intervals import wilson_interval
from ..hub_cards.plots import success_by_task
from ..hub_cards.privacy import scrub
from ..hub_cards.report import Report
from .evaluation import EvaluationResult, pooled
from .evaluation_arguments import REPORT_FILE
from .evaluation_commands import command_lines, commands_of, show_commands
from .trial_records import ROBOT_SETTINGS, TrialRecords

SHOWN_FILMS, SHOWN_STRIPS, SHOWN_MISSING = 24, 60, 60  # a page of more is too large to open; all lie beside it

Results = Mapping[str, EvaluationResult]  # by robot
Settings = Mapping[str, Mapping[str, Any]]  # likewise


def write_evaluation(results: Results, settings: Settings, records: TrialRecords, checkpoint: str = "") -> Path:
    """Writes both reports into the records' folder and returns the page's path.

    `settings` go into both, and so does the `checkpoint`'s name. Pictures and films are those of `records`; of a
    robot's task one film is on the page. Where a robot has limits, what they did is said.
    """
    first = next(iter(settings.values()))
    common = {"checkpoint": checkpoint, **{name: first[name] for name in first if name not in ROBOT_SETTINGS}}
    commands = _limited_commands(results, settings, records)
    outcomes = {robot: _outcomes(result, robot, records) for robot, result in results.items()}
    robots = {
        robot: {
            **{name: own[name] for name in ROBOT_SETTINGS[1:] if name in own},
            **results[robot].counts(),
            "missing": _missing(results[robot]),
            **({"commands": commands[robot]} if robot in commands else {}),
            **({"outcomes": outcomes[robot]} if outcomes[robot] else {}),
        }
        for robot, own in settings.items()
    }
    content = {
        "kind": "evaluation",
        **common,
        **pooled(results.values()).to_dict(),
        "missing": len(pooled(results.values()).missing),
        "robots": robots,
        "episode_time_s": round(sum(record.seconds for record in records.finished.values()), 1),
    }
    partial = records.folder / f".{REPORT_FILE}.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, records.folder / REPORT_FILE)
    page = _page(results, records)
    _show_outcomes(page, outcomes)
    if commands:
        show_commands(page, commands)
    page.section("Settings")
    page.facts({**common, "robots": list(results), **_by_robot(settings)})
    return page.write(records.folder / "report.html")


def summary(results: Results, settings: Settings, records: TrialRecords) -> list[str]:
    """What the terminal says: episodes that succeeded, of each robot and of all, and what limits did to commands."""
    told = [f"{robot}: {_told(result.count())}" for robot, result in results.items()] if len(results) > 1 else []
    successes, trials = pooled(results.values()).count()
    interval = " (95 % interval {:.0%} to {:.0%})".format(*wilson_interval(successes, trials)) if trials else ""
    told.append(f"{successes} of {trials} episodes succeeded{interval}")
    return told + command_lines(_limited_commands(results, settings, records))


def _limited_commands(results: Results, settings: Settings, records: TrialRecords) -> dict[str, dict[str, Any]]:
    """`commands_of` each robot that has limits."""
    limited = [robot for robot, own in settings.items() if own.get("action_limits") is not None]
    return {robot: commands_of(results[robot], robot, records) for robot in limited}


def _outcomes(result: EvaluationResult, robot: str, records: TrialRecords) -> dict[str, dict[str, int]]:
    """By suite, or by task where there is none: how often the environment told of which outcome, if it told any."""
    counted: dict[str, Counter[str]] = {}
    for own, task, trial in sorted(records.finished):
        record = records.finished[own, task, trial]
        if own == robot and task in result.tasks and record.outcome is not None:
            counted.setdefault(result.tasks[task].suite or task, Counter())[record.outcome] += 1
    return {suite: dict(counts) for suite, counts in counted.items()}


def _show_outcomes(page: Report, outcomes: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    """What was done, where environments say so."""
    kinds = sorted({kind for by_suite in outcomes.values() for own in by_suite.values() for kind in own})
    if not kinds:
        return
    page.section("What was done")
    arms = ["arm"] if len(outcomes) > 1 else []
    rows = [
        [suite, *([robot] if arms else []), *(own.get(kind, 0) for kind in kinds)]
        for robot, by_suite in outcomes.items()
        for suite, own in by_suite.items()
    ]
    page.table(["suite", *arms, *kinds], rows, "Trials by outcome, in the environment's own words.")


def _by_robot(settings: Settings) -> dict[str, Any]:
    """What robots may differ in: of one as it is, of several by robot."""
    told = {name: {robot: own.get(name) for robot, own in settings.items()} for name in ROBOT_SETTINGS[1:]}
    return told if len(settings) > 1 else {name: next(iter(own.values())) for name, own in told.items()}


def _page(results: Results, records: TrialRecords) -> Report:
    together = pooled(results.values())
    successes, trials = together.count()
    page = Report("Closed-loop evaluation", f"{successes} of {trials} episodes succeeded")
    if together.missing:
        page.section("Incomplete")
        rows = [[robot, *one.values()] for robot, own in results.items() for one in _missing(own)]
        told = f"{len(rows)} trials failed to end and count nowhere; the same call runs them again."
        if len(rows) > SHOWN_MISSING:
            told += f" The first {SHOWN_MISSING} of them; all are in {REPORT_FILE}."
        page.table(["arm", "task", "trial", "why"], rows[:SHOWN_MISSING], told)
    suites = together.suites()
    if suites:
        page.section("Success by suite and arm")
        rows = [[suite, len(tasks), *_cells(results, tasks)] for suite, tasks in suites.items()]
        if len(suites) > 1:
            rows.append(["all suites", len(together.tasks), *_cells(results)])
        page.table(["suite", "tasks", *results], rows, "Successes / trials with 95 % Wilson intervals.")
        counts = {arm: {suite: own.count(suites[suite]) for suite in suites} for arm, own in results.items()}
        _show_success(page, counts, "Success by suite with 95 % intervals.")
    page.section("Success by task and arm")
    page.text("Successes / trials with 95 % Wilson intervals; every trial has a start of its own, decided by the seed.")
    for suite, tasks in (suites or {"": list(together.tasks)}).items():
        names = [task.removeprefix(f"{suite}/") for task in tasks]
        rows = [[name, *_cells(results, [task])] for name, task in zip(names, tasks, strict=True)]
        page.table([suite or "task", *results], rows if suite else [*rows, ["all tasks", *_cells(results)]])
        counts = {arm: dict(zip(names, (own.count([t]) for t in tasks), strict=True)) for arm, own in results.items()}
        where = f" of {suite}" if suite else ""
        _show_success(page, counts, f"Success by task{where} with 95 % intervals.")
    _show_failures(page, results, records)
    _show_films(page, results, records)
    return page


def _missing(result: EvaluationResult) -> list[dict[str, Any]]:
    """Trials that failed to end, and why, without paths of this machine."""
    return [{"task": one.task, "trial": one.trial, "error": scrub(one.error)} for one in result.missing]


def _show_success(page: Report, counts: Mapping[str, Mapping[str, tuple[int, int]]], caption: str) -> None:
    """A figure of what has trials, if anything has."""
    tried = {arm: {name: own for name, own in by_name.items() if own[1]} for arm, by_name in counts.items()}
    if any(tried.values()):
        page.figure(success_by_task(tried), caption=caption)


def _cells(results: Results, tasks: Sequence[str] | None = None) -> list[str]:
    """Of each robot; where a column is narrow the interval stands under its counts."""
    return [_told(result.count(tasks), "\u00a0", "–\u2060") for result in results.values()]


def _told(counts: tuple[int, int], space: str = " ", dash: str = "–") -> str:
    if not counts[1]:
        return "none"
    low, high = wilson_interval(*counts)
    return f"{counts[0]}{space}/{space}{counts[1]} ({100 * low:.0f}{dash}{100 * high:.0f}{space}%)"


def _show_failures(page: Report, results: Results, records: TrialRecords) -> None:
    """Of every task and robot the first trial that failed, as a strip of frames."""
    failed = [records.first_failure(task, robot) for task, robot in _tasks_and_robots(results)]
    strips = [record for record in failed if record and record.strip and (records.folder / record.strip).is_file()]
    if not strips:
        return
    page.section("Failures")
    told = "The first failed trial of every task and arm, from its start to its end."
    if len(strips) > SHOWN_STRIPS:
        told += f" {len(strips) - SHOWN_STRIPS} more lie in `strips`."
    page.text(told)
    for record in strips[:SHOWN_STRIPS]:
        told = f"{record.robot}, trial {record.trial}, no success in {record.steps} steps"
        page.strip(records.folder / str(record.strip), record.task, told)


def _show_films(page: Report, results: Results, records: TrialRecords) -> None:
    filmed = [r for r in records.finished.values() if r.film and (records.folder / r.film).is_file()]
    first = {
        pair: min((r for r in filmed if (r.task, r.robot) == pair), key=lambda r: r.trial, default=None)
        for pair in _tasks_and_robots(results)
    }
    shown = [record for record in first.values() if record is not None][:SHOWN_FILMS]
    if not shown:
        return
    page.section("Rollouts")
    if len(shown) < len(filmed):
        page.text(f"{len(shown)} of {len(filmed)} films; all lie in `films`.")
    for record in shown:
        outcome = "success" if record.success else "failure"
        caption = f"{record.task}, {record.robot}, trial {record.trial}: {outcome}"
        page.video(records.folder / str(record.film), caption=caption)


def _tasks_and_robots(results: Results) -> list[tuple[str, str]]:
    return [(task, robot) for task in pooled(results.values()).tasks for robot in results]


__all__ = ["summary", "write_evaluation"]
