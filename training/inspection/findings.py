"""What an inspection has to say: findings, each with its severity, what it concerns, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

STATUS_WARNINGS = 3  # exit statuses; 1 and 2 are the command line's own (work failed, arguments wrong)
STATUS_ERRORS = 4


class Severity(StrEnum):
    """`error`: training would stop or learn from broken numbers; `warning`: look at it first; `info`: good to know."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


@dataclass(frozen=True)
class Finding:
    """One thing that was found in a dataset.

    Args:
        code: short name of what it is, the same in every dataset (`idle-frames`).
        severity: how bad it is.
        message: what was found, with episodes, dims and numbers; a sentence.
        remedy: what to do about it; a sentence.
        episodes: the episodes concerned, all of them; empty where it concerns the dataset as a whole.
        dims: names of the dims, or of the camera, concerned.
        numbers: what was measured, by name; plain numbers and strings.
    """

    code: str
    severity: Severity
    message: str
    remedy: str
    episodes: Sequence[int] = ()
    dims: Sequence[str] = ()
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in report.json: `numbers` beside the other keys."""
        return {
            "code": self.code,
            "severity": self.severity.value,
            "message": self.message,
            "remedy": self.remedy,
            "episodes": [int(episode) for episode in self.episodes],
            "dims": list(self.dims),
            **self.numbers,
        }


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then warnings, then the rest; otherwise in the order in which they were found."""
    order = list(Severity)
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def exit_status(findings: Iterable[Finding], strict: bool = False) -> int:
    """4 with an error among the findings; 3 with a warning when `strict`; otherwise 0: fit to be trained on."""
    severities = {finding.severity for finding in findings}
    if Severity.ERROR in severities:
        return STATUS_ERRORS
    return STATUS_WARNINGS if strict and Severity.WARNING in severities else 0


def listed(things: Sequence[object], limit: int = 4) -> str:
    """`a, b, c and 7 more`, for messages."""
    shown = ", ".join(str(thing) for thing in things[:limit])
    return shown if len(things) <= limit else f"{shown} and {len(things) - limit} more"


def counted(count: int, noun: str) -> str:
    """`1 episode`, `2 episodes`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


__all__ = ["Finding", "Severity", "by_severity", "counted", "exit_status", "listed"]
