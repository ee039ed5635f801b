"""`priorvla info PRIOR --dataset MINE`: how far my robot's motion lies from priors, in the terminal and as a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..configuration.compatibility import CompatibilityReport
from ..hub_cards.motion_plots import intervals_by_row
from ..hub_cards.report import Report
from ..hub_cards.versions import installed_versions
from .data.readers import load_trajectories
from .data.trajectory import TrajectorySource
from .motion_distance import MotionDistance, cannot_be_told_apart, motion_distance
from .prior_report import told_interval

FEW_STEPS = 4  # of the dataset in what is compared: there are as many cosines in a profile


def compare_motion(
    priors: Sequence[str], dataset: str | Path, output_dir: str | Path | None = None, seed: int = 0
) -> str:
    """What the terminal is told of `priors` and a `dataset` (folder or Hub id), see `motion_distance` for its errors.

    With `output_dir`, report.html and report.json are written there.
    """
    source = load_trajectories(dataset)
    distances = motion_distance(priors, source, seed)
    if output_dir is not None:
        write_distance_report(output_dir, distances, source, seed)
    told = describe_distances(distances, source)
    return told if output_dir is None else f"{told}\n\nReport: {Path(output_dir) / 'report.html'}"


def describe_distances(distances: Sequence[MotionDistance], source: TrajectorySource) -> str:
    """A table of the priors, nearest first, and what may be concluded from it."""
    rows = [[*_row(entry)] for entry in distances]
    headings = ["prior", "energy distance", "nearest body", "all its bodies", "coverage"]
    widths = [max(len(row[column]) for row in (headings, *rows)) + 2 for column in range(len(headings))]
    lines = [f"{source.embodiment.name}: {len(source)} episodes, {source.num_steps} steps. {_protocol(distances)}", ""]
    lines += [
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (headings, *rows)
    ]
    lines += ["", *conclusions(distances)]
    lines += [f"\n{entry.prior}: {report}" for entry, report in _remarks(distances)]
    return "\n".join(line.replace("**", "") for line in lines)


def conclusions(distances: Sequence[MotionDistance]) -> list[str]:
    """Sentences: whether the nearest prior knows this motion, which others cannot be told from it, and known bodies."""
    nearest = distances[0]
    low, high = nearest.distance.interval
    within = f"two halves of this dataset differ by up to {nearest.floor:.2g}"
    if nearest.distance.value <= nearest.floor:
        said = [f"**{nearest.prior}** knows motion like this: {within}, and it lies no farther."]
    else:
        said = [
            f"**{nearest.prior}** lies {nearest.distance.value:.2g} away (95 % interval {low:.2g} to {high:.2g}; 0: "
            f"the same kind of motion, 1: nothing in common); {within}."
        ]
    same = [entry.prior for entry in distances[1:] if cannot_be_told_apart(nearest, entry)]
    if same:
        said.append(f"These episodes do not tell it apart from {', '.join(same)}.")
    elif len(distances) > 1:
        said.append("It lies nearest: the interval of its difference to every other prior leaves zero out.")
    for entry in distances:
        said.append(_on_known_body(entry))
    return said


def _remarks(distances: Sequence[MotionDistance]) -> list[tuple[MotionDistance, CompatibilityReport]]:
    """Compatibility reports that say more than that everything fits."""
    return [
        (entry, entry.compatibility)
        for entry in distances
        if entry.compatibility is not None and (entry.compatibility.warnings or not entry.compatibility.fits)
    ]


def _on_known_body(entry: MotionDistance) -> str:
    known = entry.known
    if known is None:
        if entry.compatibility is None:
            return f"{entry.prior} does not know this body: it knows {', '.join(entry.by_body)}."
        refused = ", ".join(row.key for row in entry.compatibility.rows if row.verdict == "refused")
        return f"{entry.prior} knows another body of this name, which differs in {refused}."
    loss, null = known.velocity.own, known.velocity.null
    said = f"{entry.prior} knows this body: velocity loss {told_interval(loss)}"
    if known.recorded_velocity is not None:
        said += f", {known.recorded_velocity:.3g} on its own held-out motion"
        said += f": {_against(loss.interval, known.recorded_velocity)}"
    said += f"; told nothing {told_interval(null)}"
    if known.reconstruction is not None:
        said += f". Chunks come back to within {told_interval(known.reconstruction)} (raw units)"
        if known.recorded_reconstruction is not None:
            said += f", {known.recorded_reconstruction:.3g} on its own"
    return f"{said}."


def _against(interval: tuple[float, float], recorded: float) -> str:
    low, high = interval
    if low <= recorded <= high:
        return "no difference that these episodes show"
    return "this motion is harder for it" if low > recorded else "this motion is easier for it"


def write_distance_report(
    folder: str | Path, distances: Sequence[MotionDistance], source: TrajectorySource, seed: int
) -> tuple[Path, Path]:
    """Writes `report.html` and `report.json` into `folder` and returns their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "kind": "motion-distance",
        "dataset": source.fingerprint,
        "embodiment": source.embodiment.name,
        "seed": seed,
        "priors": [_as_json(entry) for entry in distances],
        "versions": installed_versions(),
    }
    file, partial = folder / "report.json", folder / ".report.json.partial"
    partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    partial.replace(file)
    return _page(distances, source, seed).write(folder / "report.html"), file


def _page(distances: Sequence[MotionDistance], source: TrajectorySource, seed: int) -> Report:
    page = Report(
        f"How far {source.embodiment.name} lies from what is known",
        f"{len(source)} episodes, {source.num_steps} steps, against "
        f"{len(distances)} action prior{'s' if len(distances) > 1 else ''}",
    )
    page.section("What came out")
    first, *rest = conclusions(distances)
    page.note(first)
    page.text("\n".join(f"- {line}" for line in rest))
    page.section("Distances")
    page.text(
        "A prior is asked to make up motion, told nothing. Of its samples and of your episodes, single action dims are "
        "compared by how they move in a while, in slow strokes, relative to how far they usually go. So robots of "
        "other dims, rates and units can be compared; *where* a robot moves, and how its dims move together, is not. "
        "**Energy distance** is 0 when the two could not be told apart, 1 when they have nothing in common. A prior "
        "counts by its nearest body. **Coverage** is the share of your motion near which there is a sample. "
        "Samples that tremble make a prior look farther away than what it has learned: see the jerk in its own report."
    )
    rows = {
        entry.prior: {
            "nearest body": (entry.distance.value, *entry.distance.interval),
            "all its bodies": (entry.all_bodies.value, *entry.all_bodies.interval),
        }
        for entry in distances
    }
    page.figure(
        intervals_by_row(rows, "energy distance to your motion", floors={e.prior: e.floor for e in distances}),
        "Nearer to zero is nearer. Shaded: what two halves of your own dataset show 95 % of the time.",
    )
    page.table(
        ["prior", "energy distance", "nearest body", "all its bodies", "coverage"],
        [_row(entry) for entry in distances],
        _protocol(distances),
    )
    page.table(
        ["prior", "body", "energy distance"],
        [
            [entry.prior, body, told_interval(distance, 2)]
            for entry in distances
            for body, distance in sorted(entry.by_body.items(), key=lambda pair: pair[1].value)
        ],
        "Every body that a prior knows, nearest first.",
    )
    for entry, report in _remarks(distances):
        page.table(
            ["", "the prior was trained with", "your data have", "verdict", "what to do"],
            [[row.key, row.trained, row.data, row.verdict, row.remedy] for row in report.rows],
            f"{entry.prior}: whether your data fit its body of the same name.",
        )
    page.section("How it was measured")
    page.facts({"seed": seed, **installed_versions()})
    return page


def _row(entry: MotionDistance) -> list[str]:
    return [
        entry.prior,
        told_interval(entry.distance, 2),
        entry.nearest,
        told_interval(entry.all_bodies, 2),
        f"{entry.coverage.value:.0%}",
    ]


def _protocol(distances: Sequence[MotionDistance]) -> str:
    one = distances[0]
    few = " Fewer than eight episodes: intervals are too narrow." if one.episodes < 8 else ""
    short = (
        f" That is {one.steps:.2g} of your steps, too short to tell much: prefer priors of longer chunks."
        if one.steps < FEW_STEPS
        else ""
    )
    return f"Compared over {one.duration:.2g} s; 95 % intervals from {one.episodes} episodes drawn again.{few}{short}"


def _as_json(entry: MotionDistance) -> dict[str, Any]:
    known = entry.known
    return {
        "prior": entry.prior,
        "distance": entry.distance.to_dict(),
        "nearest_body": entry.nearest,
        "by_body": {name: distance.to_dict() for name, distance in entry.by_body.items()},
        "all_bodies": entry.all_bodies.to_dict(),
        "floor": entry.floor,
        "coverage": entry.coverage.to_dict(),
        "duration_s": entry.duration,
        "fits_known_body": None if entry.compatibility is None else entry.compatibility.fits,
        "known_body": known
        and {
            "velocity_loss": known.velocity.own.to_dict(),
            "recorded_velocity_loss": known.recorded_velocity,
            "reconstruction_error": known.reconstruction and known.reconstruction.to_dict(),
            "recorded_reconstruction_error": known.recorded_reconstruction,
        },
    }


__all__ = ["compare_motion", "conclusions", "describe_distances", "write_distance_report"]
