"""Reads LeRobot datasets (v3.0) into trajectories: the few numeric columns at once, frames only when asked for."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...configuration.embodiment import Embodiment
from .frame_readers import CameraFrames, EpisodeFrames, ParquetImages, VideoFrames
from .lerobot_fingerprint import dataset_fingerprint
from .lerobot_layout import ACTION, EMBODIMENT_FILE, STATE, EpisodeRecord, LeRobotLayout, read_json, read_layout
from .lerobot_parquet import integer_column, matrix_column, read_columns
from .trajectory import FrameReader, Trajectory, TrajectorySource

HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def load_trajectories(
    path: str | Path,
    *,
    embodiment: Embodiment | None = None,
    episodes: Sequence[int] | None = None,
    frames: bool = False,
) -> TrajectorySource:
    """Reads a LeRobot v3.0 dataset.

    Args:
        path: a dataset folder, or the Hub id of a dataset (`owner/name`), of which only `meta/` and `data/` are fetched
            (and `videos/` with `frames`).
        embodiment: the body that made the data. Default: `meta/embodiment.json`, which our writer leaves there;
            otherwise inferred from `meta/info.json` (robot type, dimension names, fps, cameras; no statistics).
        episodes: episode indices to read, in this order. Default: all.
        frames: whether trajectories get a frame reader. Without it no image or video is opened; with it they are
            opened when a frame is read, so that a missing video is an error only then.

    An episode annotated with several tasks takes the first (with a warning). The fingerprint is that of
    `dataset_fingerprint`, the videos included when `frames` is set.

    Raises:
        FileNotFoundError: there is no such dataset, or one of its files is missing.
        ValueError: on another version of the format, a damaged file, a missing column, a value that is missing or not
            finite, dims or rate that disagree with the embodiment, an episode without steps, an unknown episode; names
            file, key and value.
    """
    root = _dataset_folder(path, frames)
    layout = read_layout(root)
    body = embodiment if embodiment is not None else _stored_embodiment(layout)
    _require_match(body, layout)
    if frames and not layout.cameras:
        raise ValueError(f"{layout.info_file}: features has no image or video: this dataset has no frames to read")
    records = _selected(layout, episodes)
    trajectories = _read_trajectories(layout, records, frames)
    return TrajectorySource(root, dataset_fingerprint(root, videos=frames), body, trajectories)


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
        self._rows = _episode_rows(integer_column(table, "episode_index", file), file)

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
        unknown = [int(index) for index in indices if int(index) not in self._layout.tasks]
        if unknown:
            raise ValueError(
                f"{self._file}: episode {record.index} has task_index {unknown[0]}, which meta/tasks.parquet lacks"
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


def _episode_rows(episode_index: NDArray[np.int64], file: Path) -> dict[int, tuple[int, int]]:
    """(first row, row after the last) by episode index. Raises ValueError when an episode's rows lie apart."""
    if not len(episode_index):
        return {}
    starts = [0, *(np.flatnonzero(np.diff(episode_index)) + 1).tolist()]
    stops = [*starts[1:], len(episode_index)]
    rows: dict[int, tuple[int, int]] = {}
    for start, stop in zip(starts, stops, strict=True):
        episode = int(episode_index[start])
        if episode in rows:
            raise ValueError(f"{file}: column 'episode_index': episode {episode} starts again in row {start}")
        rows[episode] = (start, stop)
    return rows


def _selected(layout: LeRobotLayout, episodes: Sequence[int] | None) -> list[EpisodeRecord]:
    by_index = {record.index: record for record in layout.episodes}
    if episodes is None and layout.total_episodes not in (None, len(layout.episodes)):
        raise ValueError(
            f"{layout.info_file}: total_episodes is {layout.total_episodes}, meta/episodes lists {len(by_index)}: the "
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


def _stored_embodiment(layout: LeRobotLayout) -> Embodiment:
    file = layout.root / EMBODIMENT_FILE
    if file.is_file():
        try:
            return Embodiment.from_dict(read_json(file))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{file}: not a valid embodiment: {error}") from error
    return Embodiment(
        name=(layout.robot_type or layout.root.resolve().name).replace("/", "_"),
        action_names=layout.dim_names(ACTION),
        state_names=layout.dim_names(STATE),
        control_rate=layout.fps,
        cameras=list(layout.cameras),
    )


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


def _dataset_folder(path: str | Path, frames: bool) -> Path:
    folder = Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FileNotFoundError(f"{folder} is a file: pass the dataset's folder")
    if not HUB_ID.fullmatch(str(path)):
        raise FileNotFoundError(f"{folder} does not exist: pass a dataset's folder or its Hub id (owner/name)")
    from huggingface_hub import snapshot_download

    patterns = ["meta/**", "data/**", *(["videos/**"] if frames else [])]
    try:
        return Path(snapshot_download(str(path), repo_type="dataset", allow_patterns=patterns))
    except Exception as error:
        raise FileNotFoundError(
            f"{path} is neither a folder here nor could it be fetched as a dataset from the Hub: {error}"
        ) from error


__all__ = ["load_trajectories"]
