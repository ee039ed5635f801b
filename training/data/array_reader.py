"""Reads trajectories from HDF5, NPZ and plain parquet files: one file, or a folder of files of one kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...configuration.embodiment import Embodiment
from ...configuration.embodiment_registry import load_embodiment
from .array_recordings import Recording, array_files, read_recordings
from .column_mapping import MAPPING_FILE, ColumnMapping, read_mapping
from .hub_files import repository_name
from .lerobot_fingerprint import file_digest
from .trajectory import Trajectory, TrajectorySource

RATE_TOLERANCE = 0.01  # by which two statements of a rate may differ, as for LeRobot's fps
MEASURED_RATE_TOLERANCE = 0.1  # by which recorded times may, as clocks of robots jitter
PLAUSIBLE_RATES = (0.1, 10_000)  # Hz; beyond, the timestamps are no seconds


def read_arrays(
    path: Path,
    *,
    embodiment: Embodiment | None = None,
    episodes: Sequence[int] | None = None,
    frames: bool = False,
    mapping: str | Path | Mapping[str, Any] | None = None,
) -> TrajectorySource:
    """Reads the dataset in the file or folder `path`; see `load_trajectories` for arguments and errors.

    Episodes are numbered from 0 through all files, in the order of the numbers in the files' names and, within a file,
    as they stand there. The fingerprint is that of the numbers read and, with `frames`, of the files' whole content.
    """
    files = array_files(path)
    given = read_mapping(mapping, path if path.is_dir() else path.parent)
    recordings, layout = read_recordings(path, files, given, episodes, frames)
    body = _body(path, embodiment, layout, next(iter(recordings.values())))
    order = sorted(recordings) if episodes is None else episodes
    trajectories = [_trajectory(recordings[index], index, body) for index in order]
    return TrajectorySource(path, _fingerprint(trajectories, layout, files if frames else []), body, trajectories)


def _body(path: Path, embodiment: Embodiment | None, layout: ColumnMapping, first: Recording) -> Embodiment:
    """The body given, or the mapping's, or one inferred from the columns, when it agrees with the data."""
    dims = {"action": first.actions.shape[1], "state": first.states.shape[1]}
    stated = embodiment
    if stated is None and isinstance(layout.embodiment, str):
        stated = load_embodiment(layout.embodiment)
    if stated is None:
        fields = dict(layout.embodiment) if isinstance(layout.embodiment, Mapping) else {}
        rate = _agreed_rate(path, {"rate": layout.rate, "embodiment.control_rate": fields.get("control_rate")}, first)
        inferred = {
            "name": (repository_name(path) or path.resolve().stem).replace("/", "_"),
            "action_names": _dim_names(layout.action or (), dims["action"]),
            "state_names": _dim_names(layout.state or (), dims["state"]),
            "cameras": list(layout.images or {}),
        }
        stated = Embodiment.from_dict({**inferred, **fields, "control_rate": rate})
    else:
        _agreed_rate(path, {"rate": layout.rate, f"embodiment {stated.name!r}": stated.control_rate}, first)
    for label, dim in (("action", stated.action_dim), ("state", stated.state_dim)):
        if dims[label] != dim:
            columns = ", ".join(getattr(layout, label) or ()) or "no column"
            raise ValueError(
                f"{first.where}: {label} ({columns}) has {dims[label]} dims, embodiment {stated.name!r} has {dim} "
                f"{label} dims: pass the embodiment that recorded this dataset"
            )
    return stated


def _agreed_rate(path: Path, statements: Mapping[str, float | None], first: Recording) -> float:
    """The control rate (Hz) that all statements and the recorded times agree on."""
    rates = {source: float(rate) for source, rate in statements.items() if rate is not None}
    if not rates and first.timestamps is None:
        raise ValueError(
            f"{path}: the control rate is unknown: give `rate` (Hz) or `timestamp` (a column of seconds) in "
            f"{MAPPING_FILE} or mapping=, or pass embodiment="
        )
    measured = _measured_rate(first)
    rate = next(iter(rates.values()), measured)
    assert rate is not None  # stated or measured
    for source, other in rates.items():
        if abs(other - rate) > RATE_TOLERANCE * rate:
            raise ValueError(
                f"{path}: {source} says {other:g} Hz, {next(iter(rates))} says {rate:g}: correct one of them"
            )
    if measured is not None and abs(measured - rate) > MEASURED_RATE_TOLERANCE * rate:
        raise ValueError(
            f"{first.where}: its timestamps are of {measured:g} Hz, {next(iter(rates))} says {rate:g}: correct one"
        )
    return rate


def _measured_rate(recording: Recording) -> float | None:
    """Hz by the median step of the timestamps; a whole number where that is within 1 % (our choice: clocks jitter)."""
    if recording.timestamps is None or len(recording.timestamps) < 2:
        return None
    step = float(np.median(np.diff(recording.timestamps)))
    low, high = PLAUSIBLE_RATES
    if not 1 / high <= step <= 1 / low:
        raise ValueError(
            f"{recording.where}: timestamps are {step:g} apart, seconds are expected: convert them, or give `rate` "
            "(Hz) and no `timestamp`"
        )
    rate = 1 / step
    return float(round(rate)) if abs(rate - round(rate)) <= RATE_TOLERANCE * rate else round(rate, 2)


def _dim_names(columns: Sequence[str], dim: int) -> list[str]:
    """One name a dim, from the names of the columns when they tell (`joint1, joint2`), otherwise numbered."""
    names = [column.replace(".", "/").rpartition("/")[2] for column in columns]
    if len(names) == dim and len(set(names)) == dim:
        return names
    base = names[0] if len(names) == 1 else ""
    return [f"{base}_{index}" if base else f"dim_{index}" for index in range(dim)]


def _trajectory(recording: Recording, index: int, body: Embodiment) -> Trajectory:
    steps = np.arange(len(recording.actions)) / body.control_rate
    return Trajectory(
        states=recording.states,
        actions=recording.actions,
        task=recording.task,
        episode_index=index,
        timestamps=steps if recording.timestamps is None else recording.timestamps,
        frames=recording.frames,
        source=recording.where,
    )


def _fingerprint(trajectories: Sequence[Trajectory], layout: ColumnMapping, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for trajectory in trajectories:
        facts = [trajectory.episode_index, trajectory.task, trajectory.states.shape, trajectory.actions.shape]
        digest.update(json.dumps(facts).encode())
        for values in (trajectory.states, trajectory.actions, trajectory.timestamps):
            digest.update(np.ascontiguousarray(values).tobytes())
    if files:
        digest.update(json.dumps(dict(layout.images or {}), sort_keys=True).encode())
    for file in files:
        digest.update(file_digest(file))
    return digest.hexdigest()


__all__ = ["read_arrays"]
