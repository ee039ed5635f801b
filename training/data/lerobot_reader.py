"""Reads LeRobot datasets into trajectories: the few numeric columns at once, frames only when asked for."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...configuration.embodiment import Embodiment
from .frame_readers import CameraFrames, EpisodeFrames, ParquetImages, VideoFrames
from .hub_files import repository_name
from .lerobot_fingerprint import dataset_fingerprint
from .lerobot_layout import ACTION, EMBODIMENT_FILE, STATE, EpisodeRecord, LeRobotLayout
from .lerobot_metadata import read_json, read_layout
from .lerobot_parquet import episode_rows, integer_column, matrix_column, read_columns
from .trajectory import FrameReader, Trajectory, TrajectorySource


def read_lerobot(
    root: Path,
    *,
    embodiment: Embodiment | None = None,
    episodes: Sequence[int] | None = None,
    frames: bool = False,
    fetch: Callable[[Sequence[str]], Any] | None = None,
) -> TrajectorySource:
    """Reads the LeRobot dataset (v2.0, v2.1, v3.0) in folder `root`; see `load_trajectories` for arguments and errors.

    An episode annotated with several tasks takes the first (with a warning). The fingerprint is that of
    `dataset_fingerprint`, over the files of the episodes read, with their videos when `frames` is set.

    `fetch` is called with patterns of the data files and videos that are needed, before they are read.
    """
    layout = read_layout(root)
    body = embodiment if embodiment is not None else _stored_embodiment(layout)
    _require_match(body, layout)
    if frames and not layout.cameras:
        raise ValueError(f"{layout.info_file}: features has no image or video: this dataset has no frames to read")
    records = _selected(layout, episodes)
    data_files = [record.data_file for record in records]
    cameras = set(layout.cameras.values()) if frames else set()
    videos = [span.file for record in records for key, span in record.videos.items() if key in cameras]
    if fetch is not None:
        fetch(_patterns(root, [*data_files, *videos], whole=episodes is None))
    trajectories = _read_trajectories(layout, records, frames)
    return TrajectorySource(root, dataset_fingerprint(root, data_files, videos), body, trajectories)


def _patterns(root: Path, files: Sequence[Path], *, whole: bool) -> list[str]:
    """Patterns of the Hub that match `files`; for a `whole` dataset a few, as every pattern is tried on every file."""
    places = [file.relative_to(root) for file in dict.fromkeys(files)]
    if whole:
        return sorted({f"{glob.escape(place.parts[0])}/*{place.suffix}" for place in places})
    return [glob.escape(place.as_posix()) for place in places]


def _read_trajectories(layout: LeRobotLayout, records: list[EpisodeRecord], frames: bool) -> list[Trajectory]:
    """Trajectories in the records' order; each data file is read once, one after the other."""
    by_file: dict[Path, list[EpisodeRecord]] = {}
    for record in records:
        by_file.setdefault(record.data_file, []).append(record)
    trajectories: dict[int, Trajectory] = {}
    for file, members in by_file.items():
        data = _DataFile(file, layout)
        trajectories |= {record.index: data.trajectory(record, frames) for record in members}
    return [trajectories[record.index] for record in records]


class _DataFile:
    """The numeric columns of one data file, cut into episodes."""

    def __init__(self, file: Path, layout: LeRobotLayout) -> None:
        self._file = file
        self._layout = layout
        state = [STATE] if layout.dim(STATE) else []
        table = read_columns(file, [*state, ACTION, "timestamp", "episode_index", "task_index"])
        self._actions = matrix_column(table, ACTION, layout.dim(ACTION), file)
        self._states = (
            matrix_column(table, STATE, layout.dim(STATE), file) if state else np.zeros((len(table), 0), np.float32)
        )
        self._timestamps = matrix_column(table, "timestamp", 1, file)[:, 0].astype(np.float64)
        self._tasks = integer_column(table, "task_index", file)
        self._rows = episode_rows(integer_column(table, "episode_index", file), "episode_index", file)

    def trajectory(self, record: EpisodeRecord, frames: bool) -> Trajectory:
        start, stop = self._rows.get(record.index, (0, 0))
        if stop - start != record.length:
            raise ValueError(
                f"{self._file}: episode {record.index} has {stop - start} rows, {record.source} says length "
                f"{record.length}: the two do not belong together, download or record the dataset again"
            )
        rows = slice(start, stop)
        # Copies, so that a few chosen episodes do not keep their whole file in memory.
        return Trajectory(
            states=self._states[rows].astype(np.float32),
            actions=self._actions[rows].astype(np.float32),
            task=self._task(rows, record),
            episode_index=record.index,
            timestamps=self._timestamps[rows].copy(),
            frames=self._frames(rows, record) if frames else None,
            source=str(self._file),
        )

    def _task(self, rows: slice, record: EpisodeRecord) -> str:
        indices = self._tasks[rows]
        unknown = [index for index in np.unique(indices).tolist() if index not in self._layout.tasks]
        if unknown:
            raise ValueError(
                f"{self._file}: episode {record.index} has task_index {unknown[0]}, which the tasks in meta/ lack"
            )
        task = self._layout.tasks[int(indices[0])]
        if (indices != indices[0]).any():
            warnings.warn(f"{self._file}: episode {record.index} has several tasks, using {task!r}", stacklevel=2)
        return task

    def _frames(self, rows: slice, record: EpisodeRecord) -> FrameReader:
        cameras: dict[str, CameraFrames] = {}
        for name, key in self._layout.cameras.items():
            if self._layout.features[key]["dtype"] == "image":
                cameras[name] = ParquetImages(self._file, key, rows.start, record.length)
            elif key in record.videos:
                span = record.videos[key]
                cameras[name] = VideoFrames(span.file, self._timestamps[rows] + span.start, self._layout.fps)
        return EpisodeFrames(cameras, record.length, f"{self._file}: episode {record.index}")


def _selected(layout: LeRobotLayout, episodes: Sequence[int] | None) -> list[EpisodeRecord]:
    by_index = {record.index: record for record in layout.episodes}
    if episodes is None and layout.total_episodes not in (None, len(layout.episodes)):
        raise ValueError(
            f"{layout.info_file}: total_episodes is {layout.total_episodes}, meta/ lists {len(by_index)} episodes: the "
            "dataset is incomplete, download it again or name the episodes to read"
        )
    for index in episodes if episodes is not None else ():
        if index not in by_index:
            known = f"{min(by_index)} to {max(by_index)}" if by_index else "none"
            raise ValueError(f"{layout.root}: there is no episode {index}, the dataset has {known}")
    records = layout.episodes if episodes is None else [by_index[index] for index in episodes]
    if not records:
        raise ValueError(f"{layout.root}: no episodes to read")
    for record in records:
        if record.length < 1:
            raise ValueError(
                f"{record.source}: episode {record.index} has length {record.length}: leave it out by episodes=, or "
                "record it again"
            )
    return records


def described_embodiment(root: Path) -> Embodiment:
    """The body of the LeRobot dataset in folder `root`, of which `meta/` is enough; errors as `load_trajectories`."""
    return _stored_embodiment(read_layout(root))


def _stored_embodiment(layout: LeRobotLayout) -> Embodiment:
    file = layout.root / EMBODIMENT_FILE
    if file.is_file():
        try:
            return Embodiment.from_dict(read_json(file))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: not a valid embodiment: {error}") from error
    actions = layout.dim_names(ACTION)
    return Embodiment(
        name=_body_name(layout).replace("/", "_"),
        action_names=actions,
        state_names=layout.dim_names(STATE),
        control_rate=layout.fps,
        gripper_dims=[index for index, name in enumerate(actions) if "gripper" in name.lower()],
        cameras=list(layout.cameras),
    )


def _body_name(layout: LeRobotLayout) -> str:
    """What the dataset calls its robot; where it does not (LeRobot then writes `unknown`), its own name."""
    if layout.robot_type and layout.robot_type != "unknown":
        return layout.robot_type
    return repository_name(layout.root) or layout.root.resolve().name


def _require_match(embodiment: Embodiment, layout: LeRobotLayout) -> None:
    for label, key, dim in (("action", ACTION, embodiment.action_dim), ("state", STATE, embodiment.state_dim)):
        if layout.dim(key) != dim:
            raise ValueError(
                f"{layout.info_file}: features[{key!r}] has {layout.dim(key)} dims, embodiment {embodiment.name!r} has "
                f"{dim} {label} dims: pass the embodiment that recorded this dataset"
            )
    if abs(embodiment.control_rate - layout.fps) > 0.01 * layout.fps:
        raise ValueError(
            f"{layout.info_file}: fps is {layout.fps:g}, embodiment {embodiment.name!r} is controlled at "
            f"{embodiment.control_rate:g} Hz: pass the embodiment that recorded this dataset"
        )


__all__ = ["described_embodiment", "read_lerobot"]
