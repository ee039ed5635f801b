"""Reads a dataset that may be damaged: every fault becomes a finding, and what training could read is read.

The strict reader stops at the first fault, as training has to. Here it reads the dataset first, so that a sound one is
read once; only where it stops are the faults looked for, all of them, and the sound episodes read without the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.hub_files import HubDataset
from ..data.lerobot_layout import ACTION, INFO_FILE, STATE, EpisodeRecord, LeRobotLayout
from ..data.lerobot_metadata import read_layout
from ..data.lerobot_parquet import integer_column, matrix_column, read_columns
from ..data.readers import load_trajectories
from ..data.trajectory import TrajectorySource
from .findings import Finding, Severity, counted, listed


@dataclass(eq=False)
class ReadDataset:
    """What could be read.

    Args:
        source: the sound episodes; None where there are none.
        findings: what was wrong with the others.
        absent_frames: by camera, what is missing by episode number, as far as files tell without being opened.
    """

    source: TrajectorySource | None
    findings: list[Finding] = field(default_factory=list)
    absent_frames: dict[str, dict[int, str]] = field(default_factory=dict)


def read_leniently(
    path: str | Path, *, frames: bool, episodes: Sequence[int] | None = None, **options: Any
) -> ReadDataset:
    """Reads the sound episodes of a dataset; arguments as `load_trajectories`, `frames` only if it has cameras.

    Findings: `not-finite`, `unreadable-files`, `unreadable-episodes`, `unreadable-dataset`, `inconsistent-metadata`,
    `no-cameras` and `reader-warnings`. Datasets that are not LeRobot's are read whole or not at all.

    Raises FileNotFoundError when there is no such dataset, ValueError when `episodes` names one that it does not have.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read = _read(path, frames, episodes, options)
    told = list(dict.fromkeys(str(warning.message) for warning in caught if warning.category is UserWarning))
    if told:
        read.findings.append(
            Finding(
                "reader-warnings",
                Severity.WARNING,
                f"{counted(len(told), 'warning')} while reading: {told[0]}"
                + ("" if len(told) == 1 else " (and others)"),
                "Correct the metadata, or make sure that this is what you want.",
                numbers={"count": len(told)},
            )
        )
    return read


def _read(path: str | Path, frames: bool, episodes: Sequence[int] | None, options: dict[str, Any]) -> ReadDataset:
    findings = []
    try:
        source = load_trajectories(path, frames=frames, episodes=episodes, **options)
    except (ValueError, OSError) as error:
        if not frames:
            return _salvaged(path, error, frames, episodes, options)
        try:
            source = load_trajectories(path, episodes=episodes, **options)
        except (ValueError, OSError):
            return _salvaged(path, error, frames, episodes, options)
        findings.append(
            Finding(
                "no-cameras",
                Severity.INFO,
                f"No pictures to look at: {error}",
                "Nothing is needed for an action prior; a policy that sees needs pictures.",
            )
        )
    absent = _absent_frames(source) if frames else {}
    return ReadDataset(source, findings, absent)


def _absent_frames(source: TrajectorySource) -> dict[str, dict[int, str]]:
    """Videos of a LeRobot dataset that are not there."""
    if not (source.root / INFO_FILE).is_file():
        return {}
    layout = read_layout(source.root)
    wanted = {trajectory.episode_index for trajectory in source.trajectories}
    absent: dict[str, dict[int, str]] = {}
    for camera, key in layout.cameras.items():
        for record in layout.episodes:
            if record.index in wanted and key in record.videos and not record.videos[key].file.is_file():
                absent.setdefault(camera, {})[record.index] = str(record.videos[key].file)
    return absent


def _salvaged(
    path: str | Path, error: Exception, frames: bool, episodes: Sequence[int] | None, options: dict[str, Any]
) -> ReadDataset:
    """The sound episodes of a dataset that the strict reader refuses with `error`, and why it refuses the others."""
    root = Path(path)
    if isinstance(error, FileNotFoundError) and not (root / INFO_FILE).is_file():
        raise error
    if not root.exists():
        root = HubDataset(str(path)).fetch(["meta/*"])
    try:
        layout = read_layout(root)
    except (ValueError, OSError):
        return ReadDataset(None, [_unreadable_dataset(error)])
    known = {record.index for record in layout.episodes}
    if set(episodes or ()) - known:
        raise error
    records = [record for record in layout.episodes if episodes is None or record.index in set(episodes)]
    findings, broken = _raw_faults(layout, records)
    sound = [record.index for record in records if record.index not in broken]
    frames = frames and bool(layout.cameras)
    sources, faults = _largest_readable(path, sound, {**options, "frames": frames})
    if faults:
        findings.append(_unreadable_episodes(faults, len(records)))
    if not findings:
        findings.append(
            Finding(
                "inconsistent-metadata",
                Severity.ERROR,
                str(error),
                "Correct the metadata: until then training stops with this message.",
            )
        )
    if not sources:
        return ReadDataset(None, findings)
    trajectories = [trajectory for source in sources for trajectory in source.trajectories]
    whole = TrajectorySource(sources[0].root, sources[0].fingerprint, sources[0].embodiment, trajectories)
    return ReadDataset(whole, findings, _absent_frames(whole) if frames else {})


def _largest_readable(
    path: str | Path, episodes: list[int], options: dict[str, Any]
) -> tuple[list[TrajectorySource], dict[int, str]]:
    """Sources that together hold all readable `episodes`, and the reader's message for each of the others.

    By halves, so that few faults among many episodes cost few reads. A fault of both ends is taken for one of all.
    """
    if not episodes:
        return [], {}
    try:
        return [load_trajectories(path, episodes=episodes, **options)], {}
    except (ValueError, OSError) as error:
        message = str(error)
    if len(episodes) == 1:
        return [], {episodes[0]: message}
    ends = [_largest_readable(path, [episode], options)[1] for episode in (episodes[0], episodes[-1])]
    if len(set().union(*(fault.values() for fault in ends))) == 1 and all(ends):
        return [], dict.fromkeys(episodes, message)
    middle = len(episodes) // 2
    halves = [_largest_readable(path, half, options) for half in (episodes[:middle], episodes[middle:])]
    return halves[0][0] + halves[1][0], halves[0][1] | halves[1][1]


def _raw_faults(layout: LeRobotLayout, records: list[EpisodeRecord]) -> tuple[list[Finding], set[int]]:
    """Files that cannot be read and values that are not finite, and the episodes concerned."""
    by_file: dict[Path, list[int]] = {}
    for record in records:
        by_file.setdefault(record.data_file, []).append(record.index)
    unreadable: dict[str, list[int]] = {}
    bad_values: dict[int, dict[str, int]] = {}
    for file, members in by_file.items():
        try:
            found = _bad_values(layout, file)
        except (ValueError, OSError) as error:
            unreadable[str(error)] = members
        else:
            bad_values |= {episode: counts for episode, counts in found.items() if episode in members}
    findings = []
    lost = sorted(episode for members in unreadable.values() for episode in members)
    if unreadable:
        findings.append(
            Finding(
                "unreadable-files",
                Severity.ERROR,
                f"{counted(len(unreadable), 'data file')} cannot be read, with {counted(len(lost), 'episode')} "
                f"({listed(lost)}): {next(iter(unreadable))}",
                "Download or record them again, or take these episodes out of the dataset.",
                episodes=lost,
                numbers={"files": len(unreadable), "count": len(lost)},
            )
        )
    if bad_values:
        findings.append(_not_finite(bad_values, len(records)))
    return findings, {*lost, *bad_values}


def _bad_values(layout: LeRobotLayout, file: Path) -> dict[int, dict[str, int]]:
    """By episode, how many values of which dim of `file` are not finite."""
    keys = [key for key in (STATE, ACTION) if layout.dim(key)]
    table = read_columns(file, [*keys, "timestamp", "episode_index"])
    episode = integer_column(table, "episode_index", file)
    bad: dict[int, dict[str, int]] = {}
    for key in (*keys, "timestamp"):
        names = ["timestamp"] if key == "timestamp" else [f"{key} {name}" for name in layout.dim_names(key)]
        broken = ~np.isfinite(matrix_column(table, key, len(names), file))
        for index in np.unique(episode[broken.any(1)]).tolist():
            counts: NDArray[np.int64] = broken[episode == index].sum(0)
            bad.setdefault(index, {}).update({names[dim]: int(counts[dim]) for dim in np.flatnonzero(counts)})
    return bad


def _not_finite(bad: dict[int, dict[str, int]], total: int) -> Finding:
    episodes = sorted(bad)
    dims = list(dict.fromkeys(name for counts in bad.values() for name in counts))
    count = sum(number for counts in bad.values() for number in counts.values())
    return Finding(
        "not-finite",
        Severity.ERROR,
        f"{counted(count, 'value')} not finite (NaN or infinite) in {counted(len(episodes), 'episode')} of {total} "
        f"({listed(episodes)}): {listed(dims)}. These episodes are left out of all that follows.",
        "Repair the values (interpolate short gaps), or take the episodes out: training refuses them.",
        episodes=episodes,
        dims=dims,
        numbers={"count": count},
    )


def _unreadable_episodes(faults: dict[int, str], total: int) -> Finding:
    episodes = sorted(faults)
    return Finding(
        "unreadable-episodes",
        Severity.ERROR,
        f"{counted(len(episodes), 'episode')} of {total} cannot be read ({listed(episodes)}): {faults[episodes[0]]}",
        "Repair them, or take them out of the dataset: training stops with this message.",
        episodes=episodes,
        numbers={"count": len(episodes)},
    )


def _unreadable_dataset(error: Exception) -> Finding:
    return Finding(
        "unreadable-dataset",
        Severity.ERROR,
        str(error),
        "Download or record the dataset again, or correct what the message names.",
    )


__all__ = ["ReadDataset", "read_leniently"]
