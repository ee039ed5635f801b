"""Where a benchmark's numbers go: one JSON file, with the machine and the libraries that they were measured with."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from priorvla.hub_cards.versions import VERSIONED, installed_versions


def write_report(
    folder: Path,
    result: Mapping[str, Any],
    *,
    threads: int | None = None,
    packages: tuple[str, ...] = (),
    name: str = "report.json",
) -> dict[str, Any]:
    """Writes `folder`/`name` and returns what it says: `result`, `machine` and `versions`.

    `threads`: how many the benchmark kept to; `packages`: whose versions matter besides torch's and its neighbours'.
    """
    used = "" if threads is None else f", {threads} used"
    report = {**result, "machine": f"{machine()}{used}", "versions": installed_versions((*VERSIONED, *packages))}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return report


def machine() -> str:
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def made_with(report: Mapping[str, Any]) -> str:
    """A line below a table: the machine and the versions."""
    return f"{report['machine']}; {', '.join(f'{name} {number}' for name, number in report['versions'].items())}"
