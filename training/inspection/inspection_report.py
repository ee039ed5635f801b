"""What an inspection says: a few lines for the terminal, `report.html` for people, `report.json` for programs."""

from __future__ import annotations

import json
import os
import shutil
import textwrap
import uuid
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...configuration.embodiment import Embodiment
from ...hub_cards.dataset_plots import dim_ranges, lag_curves, length_histogram, motion_timeline
from ...hub_cards.report import Report
from ...hub_cards.versions import installed_versions
from .agreement_checks import Agreement
from .findings import Finding, Severity, counted
from .inspection import Inspection, Measures
from .recording import DimStatistics
from .timing_checks import Windows

REPORT_VERSION = 1
TIMELINE_EPISODES = 60
SHOWN_INSTRUCTIONS = 30
EXTREME = "; extreme is the greatest magnitude after normalisation."


def verdict(inspection: Inspection) -> str:
    """Whether to train on it, in a sentence."""
    errors, warnings = (inspection.count(severity) for severity in (Severity.ERROR, Severity.WARNING))
    warned = f" and {counted(warnings, 'warning')}" if warnings else ""
    if errors:
        return f"Not ready: {counted(errors, 'error')}{warned}."
    if warnings:
        return f"Usable, after a look at {counted(warnings, 'warning')}."
    return "Ready: nothing was found that stands against training."


def describe_inspection(inspection: Inspection, width: int | None = None) -> str:
    """The summary for a terminal of `width` columns (default: this one's)."""
    columns = min(120, width or shutil.get_terminal_size((100, 24)).columns)
    lines = [_headline(inspection), ""]
    for finding in inspection.findings:
        lines += _wrapped(f"{finding.severity.upper():<8}", f"{finding.code}: {finding.message}", columns)
        lines += _wrapped(" " * 8, f"→ {finding.remedy}", columns)
    if inspection.findings:
        lines.append("")
    if inspection.measures is not None:
        for name, value in _used_facts(inspection.measures).items():
            lines += _wrapped(f"{name:<15}", value, columns)
        lines.append("")
    return "\n".join([*lines, verdict(inspection), _next_step(inspection).replace("`", "")])


def _wrapped(head: str, text: str, columns: int) -> list[str]:
    return textwrap.wrap(text, columns, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False)


def _headline(inspection: Inspection) -> str:
    if inspection.measures is None or inspection.embodiment is None:
        return f"{inspection.dataset}: no episode could be read"
    body = inspection.embodiment
    seconds = inspection.frames / body.control_rate
    length = f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return (
        f"{inspection.dataset}: {counted(inspection.episodes, 'episode')}, {counted(inspection.frames, 'frame')}, "
        f"{length} at {body.control_rate:g} Hz, {body.name} ({body.action_dim} action and {body.state_dim} state dims)"
    )


def _used_facts(measures: Measures) -> dict[str, str]:
    """What training will make of the data."""
    recording, windows, language = measures.recording, measures.windows, measures.language
    lengths, period = recording.lengths, recording.period
    facts = {
        "windows": _windows_text(windows),
        "episodes": f"{_spread(lengths)} steps, median {int(np.median(lengths))} ({np.median(lengths) * period:.1f} s)",
        "idle": f"{measures.idle.sum():,} steps at starts and ends ({measures.idle.sum() / recording.num_steps:.1%})",
        "normalisation": "; ".join(_normalization_text(statistics) for _, statistics in recording.labels()),
        "actions": _agreement_text(measures.agreement, period),
        "language": f"{counted(len(language.episodes), 'instruction')}"
        + (f", evenness {language.entropy:.2f}" if len(language.episodes) > 1 else ""),
    }
    if learned := _learned_text(recording.embodiment):
        facts["learned"] = learned
    if language.predicted:
        guesses = ", ".join(f"{name} {share:.0%}" for name, share in language.predicted.items())
        facts["language"] += f"; guessed from {guesses} (most frequent {language.majority:.0%})"
    if measures.cameras is not None:
        seen = [
            f"{name} {' and '.join(f'{width} x {height}' for height, width in sizes) or 'unseen'}"
            for name, sizes in measures.cameras.sizes.items()
        ]
        facts["cameras"] = f"{', '.join(seen)}; {counted(measures.cameras.frames_read, 'frame')} looked at"
    return facts


def _windows_text(windows: Windows) -> str:
    return (
        f"{windows.count:,} of {windows.chunk_size} steps ({windows.seconds:.2g} s); "
        f"{windows.padded / windows.count:.1%} run over an episode's end, {windows.padded_steps:.1%} of their steps "
        "are padding, which is masked"
    )


def _learned_text(body: Embodiment) -> str:
    """What the model learns instead of the recorded numbers, whose statistics are then not those shown; or nothing."""
    pairs = zip(body.action_kinds, body.learned_kinds, strict=True)
    kinds = Counter(learned for recorded, learned in pairs if learned != recorded)
    told = [f"{counted(count, 'action dim')} as {kind}" for kind, count in kinds.items()]
    if body.rotations:
        told.append(f"{counted(len(body.rotations), 'rotation')} as 6-D")
    return f"{', '.join(told)}, whose statistics training fits; shown are those of what was recorded" if told else ""


def _normalization_text(statistics: DimStatistics) -> str:
    held = int((statistics.scale <= statistics.minimum_range / 2).sum())
    floor = f", {counted(held, 'dim')} at the minimum range" if held and statistics.mode != "identity" else ""
    return f"{statistics.label} {statistics.mode.value}{floor}, greatest value {statistics.extreme.max(initial=0):.3g}"


def _agreement_text(agreement: Agreement, period: float) -> str:
    if agreement.relation is None:
        return "no action dim has a state dim to be compared with"
    alike = sum(dim.relation == agreement.relation for dim in agreement.dims)
    share = f"{alike} of {counted(len(agreement.dims), 'comparable dim')}"
    if agreement.relation == "unrelated" or agreement.lag is None:
        return f"unrelated to the state in {share}"
    meaning = {
        "absolute": "targets (absolute) that the state reaches",
        "scaled absolute": "targets in other units that the state reaches",
        "delta": "differences of the state (delta)",
        "velocity": "proportional to the state's change (velocity)",
    }[agreement.relation]
    lags = _spread(np.array([dim.lag for dim in agreement.dims if dim.relation == agreement.relation]))
    steps = "step" if lags == "1" else "steps"
    return f"{meaning} {lags} {steps} later (median {1000 * agreement.lag * period:.0f} ms), in {share}"


def _spread(numbers: NDArray[np.int64]) -> str:
    return f"{numbers.min()} to {numbers.max()}" if np.ptp(numbers) else f"{numbers[0]}"


def inspection_json(inspection: Inspection) -> dict[str, Any]:
    """The content of report.json: at least `episodes`, `frames`, `embodiment` and `findings`."""
    body, measures = inspection.embodiment, inspection.measures
    content: dict[str, Any] = {
        "version": REPORT_VERSION,
        "dataset": inspection.dataset,
        "verdict": verdict(inspection),
        "exit_status": inspection.exit_status(),
        "episodes": inspection.episodes,
        "frames": inspection.frames,
        "embodiment": body.name if body else None,
        "findings": [finding.to_dict() for finding in inspection.findings],
        "thresholds": asdict(inspection.thresholds),
    }
    if body is None or measures is None:
        return content
    recording, agreement, cameras = measures.recording, measures.agreement, measures.cameras
    content |= {
        "control_rate": body.control_rate,
        "hours": inspection.frames / body.control_rate / 3600,
        "action_kinds": list(body.action_kinds),
        "windows": asdict(measures.windows),
        "statistics": {
            statistics.label: {"normalization": statistics.mode.value, "dims": statistics.rows()}
            for _, statistics in recording.labels()
        },
        "lengths": dict(zip(map(str, recording.numbers.tolist()), recording.lengths.tolist(), strict=True)),
        "idle": {"leading": int(measures.idle[:, 0].sum()), "trailing": int(measures.idle[:, 1].sum())},
        "agreement": {
            "relation": agreement.relation,
            "lag": agreement.lag,
            "dims": [asdict(dim) for dim in agreement.dims],
        },
        "language": asdict(measures.language),
        "cameras": None if cameras is None else {"sizes": cameras.sizes, "frames_read": cameras.frames_read},
    }
    return content


def write_inspection(inspection: Inspection, folder: str | Path) -> Path:
    """Writes `report.json` and `report.html` into `folder` and returns the latter; what was there is replaced whole."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    partial = target / f".report.json.{uuid.uuid4().hex[:8]}.partial"
    try:
        partial.write_text(json.dumps(inspection_json(inspection), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, target / "report.json")
    finally:
        partial.unlink(missing_ok=True)
    return _page(inspection).write(target / "report.html")


def _page(inspection: Inspection) -> Report:
    page = Report(f"Inspection of {Path(inspection.dataset).name}", _headline(inspection))
    page.note(f"**{verdict(inspection)}** {_next_step(inspection)}")
    page.section("Findings")
    for severity in Severity:
        entries = [_finding_entry(finding) for finding in inspection.findings if finding.severity is severity]
        if entries:
            heading = "To know" if severity is Severity.INFO else counted(len(entries), severity.value).capitalize()
            page.text("\n".join([f"**{heading}**", *entries]))
    if not inspection.findings:
        page.text("None.")
    if inspection.measures is not None:
        _motion_sections(page, inspection.measures, inspection.findings)
        _language_section(page, inspection.measures)
    page.section("How this was made")
    page.facts({"command": "priorvla inspect", **installed_versions()})
    return page


def _next_step(inspection: Inspection) -> str:
    if inspection.count(Severity.ERROR):
        return "Errors are what training would stop at, or learn broken numbers from: see to them first."
    return f"Next: `priorvla pretrain --dataset {inspection.dataset} --output-dir runs/prior`"


def _finding_entry(finding: Finding) -> str:
    """As a list entry; backticks and line ends of a message would be taken for marks."""
    message, remedy = (" ".join(text.replace("`", "'").split()) for text in (finding.message, finding.remedy))
    return f"- `{finding.code}` {message} *{remedy}*"


def _motion_sections(page: Report, measures: Measures, findings: list[Finding]) -> None:
    recording, period = measures.recording, measures.recording.period
    page.section("What will be used")
    page.facts(_used_facts(measures))
    page.section("Motion over time")
    shown = np.unique(np.linspace(0, len(recording.lengths) - 1, TIMELINE_EPISODES).astype(int))
    speed, slices = recording.speed(), list(recording.episode_slices())
    names = [str(number) for number in recording.named(shown)]
    page.figure(
        motion_timeline([speed[slices[place]] for place in shown], measures.idle[shown], names, period),
        f"Each row is an episode ({len(shown)} of {len(slices)}): the bluer, the faster its fastest dim moves. Orange "
        "bars are idle: neither action nor state moves there.",
    )
    page.figure(
        length_histogram(recording.lengths * period, measures.windows.seconds),
        "Lengths of the episodes; what is shorter than a chunk is padded in every window.",
    )
    page.section("Values")
    concerned = {(finding.numbers.get("of"), name) for finding in findings for name in finding.dims}
    for _, statistics in recording.labels():
        page.figure(
            dim_ranges(
                statistics.names,
                np.stack([(row - statistics.center) / statistics.scale for row in _quantile_rows(statistics)]),
                [(statistics.label, name) in concerned for name in statistics.names],
                f"{statistics.label} after normalisation ({statistics.mode.value})",
            ),
            f"Recorded {statistics.label} dims after normalisation: line from least to greatest value, bar over the "
            "middle 98 %, dot at the median. Orange: something was found about this dim.",
        )
    for _, statistics in recording.labels():
        rows = statistics.rows()
        page.table(
            list(rows[0]), [list(row.values()) for row in rows], f"{statistics.label.capitalize()}, raw units{EXTREME}"
        )
    _agreement_section(page, measures)


def _quantile_rows(statistics: DimStatistics) -> list[NDArray[np.float64]]:
    return [statistics.min, statistics.q01, statistics.median, statistics.q99, statistics.max]


def _agreement_section(page: Report, measures: Measures) -> None:
    agreement, period = measures.agreement, measures.recording.period
    page.section("Actions and states")
    page.text(f"Actions are {_agreement_text(agreement, period)}." if agreement.dims else "Nothing to compare.")
    if not agreement.dims:
        return
    page.figure(
        lag_curves(agreement.lags, agreement.level, agreement.change, period),
        "How much of the action's variance the state explains that many steps later (median over dims): a peak of the "
        "first line means targets, of the second differences or velocities. A peak left of 0 means shifted columns.",
    )
    page.table(
        ["action", "state", "declared", "found", "lag", "explained"],
        [
            [dim.action, dim.state, dim.declared, dim.relation, dim.lag, f"{max(dim.explained, 0):.0%}"]
            for dim in agreement.dims
        ],
        "What each action dim is, against what the embodiment declares; lag in steps.",
    )


def _language_section(page: Report, measures: Measures) -> None:
    language, cameras = measures.language, measures.cameras
    page.section("Language and pictures")
    instructions = list(language.episodes.items())
    more = f"; the {SHOWN_INSTRUCTIONS} most frequent" if len(instructions) > SHOWN_INSTRUCTIONS else ""
    page.table(
        ["instruction", "episodes"],
        [list(entry) for entry in instructions[:SHOWN_INSTRUCTIONS]],
        f"{counted(len(instructions), 'instruction')}{more}.",
    )
    if cameras is not None:
        for camera, pictures in cameras.shown.items():
            for episode, picture in pictures:
                page.image(picture, f"{camera}, first frame of episode {episode}")


__all__ = ["describe_inspection", "inspection_json", "verdict", "write_inspection"]
