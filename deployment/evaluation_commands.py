"""What limits on commands did in an evaluation, by arm and suite; that they did nothing is said too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ..hub_cards.report import Report
from .command_counts import CommandCounts
from .evaluation import EvaluationResult
from .trial_records import TrialRecord, TrialRecords

COLUMNS = {name: name.replace("_", " ") for name in asdict(CommandCounts())}


def commands_of(result: EvaluationResult, robot: str, records: TrialRecords) -> dict[str, Any]:
    """Of the trials of `robot`, per suite and overall: the sums of `CommandCounts`, and of how many.

    `commands` is the number of those sent; `uncounted` trials are from before they were counted, and left out.
    """
    done = [record for record in records.finished.values() if record.robot == robot]
    by_suite = {suite: [r for r in done if r.task in tasks] for suite, tasks in result.suites().items()}
    return {"suites": {suite: _summed(own) for suite, own in by_suite.items()}, "overall": _summed(done)}


def command_lines(commands: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the terminal says of `commands_of` by robot: a line a suite and robot."""
    return [
        f"{where}: {own['clamped']} of {own['commands']} commands clamped (range {own['by_range']}, rate "
        f"{own['by_rate']}, jerk {own['by_jerk']}), {own['held']} held"
        for where, own in ((" ".join(names), own) for *names, own in _rows(commands))
    ]


def show_commands(page: Report, commands: Mapping[str, Mapping[str, Any]]) -> None:
    """The same as a section of a report."""
    page.section("Commands within limits")
    rows = [
        [*names, own["commands"], _share(own["clamped"], own["commands"]), *(own[name] for name in list(COLUMNS)[1:])]
        for *names, own in _rows(commands)
    ]
    told = "A clamped command was changed by one limit or by several. A held one stopped the arm, for want of another."
    if older := sum(own["overall"]["uncounted"] for own in commands.values()):
        told += f" {older} trials are from before they were counted, and left out."
    page.table(["suite", "arm", "commands", *COLUMNS.values()], rows, told)


def _rows(commands: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, str, Mapping[str, int]]]:
    """Suite, robot and counts; where there are no suites, of all tasks."""
    by_robot = {robot: own["suites"] or {"all tasks": own["overall"]} for robot, own in commands.items()}
    for suite in dict.fromkeys(suite for own in by_robot.values() for suite in own):
        yield from ((suite, robot, own[suite]) for robot, own in by_robot.items())


def _summed(records: Sequence[TrialRecord]) -> dict[str, int]:
    counted = [record for record in records if record.commands is not None]
    return {
        "commands": sum(record.steps for record in counted),
        **{name: sum((record.commands or {})[name] for record in counted) for name in COLUMNS},
        "uncounted": len(records) - len(counted),
    }


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.1%})" if total else str(count)


__all__ = ["command_lines", "commands_of", "show_commands"]
