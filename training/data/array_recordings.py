"""The episodes of HDF5, NPZ and plain parquet files as arrays: which files, which episodes of them, which columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .array_columns import ColumnFile, EpisodeColumns, natural_order
from .column_mapping import MAPPING_FILE, ColumnMapping
from .frame_readers import EpisodeFrames
from .hdf5_reader import open_hdf5
from .npz_reader import open_npz
from .parquet_reader import open_parquet_columns
from .trajectory import FrameReader, require_finite

OPENERS: dict[str, Callable[[Path], AbstractContextManager[ColumnFile]]] = {
    ".hdf5": open_hdf5,
    ".h5": open_hdf5,
    ".npz": open_npz,
    ".parquet": open_parquet_columns,
}


@dataclass(frozen=True)
class Recording:
    """One episode as its file has it: `states` (T, S), `actions` (T, D), `timestamps` (T,) seconds or None."""

    where: str
    states: NDArray[np.float32]
    actions: NDArray[np.float32]
    timestamps: NDArray[np.float64] | None
    task: str
    frames: FrameReader | None


def array_files(path: Path) -> list[Path]:
    """The files of a dataset, all of one kind, in natural order."""
    if path.is_file():
        if path.suffix not in OPENERS:
            raise ValueError(f"{path}: cannot read {path.suffix or 'a file without suffix'}, only {', '.join(OPENERS)}")
        return [path]
    places = [file.relative_to(path) for file in path.rglob("*") if file.suffix in OPENERS and file.is_file()]
    places = [place for place in places if not any(part.startswith(".") for part in place.parts)]
    openers = {OPENERS[place.suffix]: place for place in places}
    if not places:
        raise FileNotFoundError(
            f"{path} is not a dataset: meta/info.json (LeRobot) is missing, and there is no {', '.join(OPENERS)} file"
        )
    if len(openers) > 1:
        raise ValueError(
            f"{path} holds files of several kinds ({', '.join(map(str, openers.values()))}): pass one file, or a "
            "folder of one kind"
        )
    return [path / place for place in sorted(places, key=lambda place: natural_order(place.as_posix()))]


def read_recordings(
    path: Path, files: Sequence[Path], given: ColumnMapping, episodes: Sequence[int] | None, frames: bool
) -> tuple[dict[int, Recording], ColumnMapping]:
    """The wanted episodes by number, and the mapping of the first file, with which the others must agree."""
    wanted = None if episodes is None else set(episodes)
    recordings: dict[int, Recording] = {}
    layout: ColumnMapping | None = None
    homes: dict[Any, Path] = {}
    count = 0
    for file in files:
        with OPENERS[file.suffix](file) as content:
            mapping = content.completed(given)
            layout = layout or mapping
            if mapping.rate != layout.rate:
                raise ValueError(
                    f"{file} is recorded at {mapping.rate} Hz, {files[0]} at {layout.rate}: load them apart"
                )
            for episode in content.episodes(mapping):
                _require_new_name(episode, homes, file)
                if wanted is None or count in wanted:
                    recordings[count] = _recording(episode, mapping, frames)
                    _require_same_dims(recordings)
                count += 1
    for index in () if episodes is None else episodes:
        if index not in recordings:
            raise ValueError(f"{path}: there is no episode {index}, the dataset has 0 to {count - 1}")
    if not recordings or layout is None:
        raise ValueError(f"{path}: no episodes to read")
    return recordings, layout


def _recording(episode: EpisodeColumns, mapping: ColumnMapping, frames: bool) -> Recording:
    actions = _side_by_side(episode, mapping.action or (), None)
    states = _side_by_side(episode, mapping.state or (), len(actions))
    timestamps = None
    if mapping.timestamp is not None:
        timestamps = _side_by_side(episode, (mapping.timestamp,), len(actions), np.float64)[:, 0]
        timestamps = timestamps - timestamps[:1]
    reader = None
    if frames:
        if not mapping.images:
            raise ValueError(
                f"{episode.where}: no images are known, name them by images: {{camera: column}} in {MAPPING_FILE}"
            )
        cameras = {camera: episode.frames(column, len(actions)) for camera, column in mapping.images.items()}
        reader = EpisodeFrames(cameras, len(actions), episode.where)
    task = episode.text(mapping.task_column) if mapping.task_column is not None else mapping.task or ""
    return Recording(episode.where, states, actions, timestamps, task, reader)


def _side_by_side(
    episode: EpisodeColumns, columns: Sequence[str], length: int | None, dtype: type[np.floating[Any]] = np.float32
) -> NDArray[Any]:
    """Columns (T, k) put side by side, when all have `length` steps (default: as many as the first)."""
    parts: list[NDArray[Any]] = []
    for column in columns:
        values = episode.numbers(column)
        require_finite(values, f"{episode.where}: {column!r}")
        length = len(values) if length is None else length
        if len(values) != length:
            raise ValueError(
                f"{episode.where}: {column!r} has {len(values)} steps, the action {length}: they must be equally many"
            )
        parts.append(values.astype(dtype))
    return np.concatenate(parts, axis=1) if parts else np.zeros((length or 0, 0), dtype)


def _require_new_name(episode: EpisodeColumns, homes: dict[Any, Path], file: Path) -> None:
    if episode.name is not None and homes.setdefault(episode.name, file) != file:
        raise ValueError(
            f"episode {episode.name!r} is in {homes[episode.name]} and in {file}: number episodes through all files, "
            "or load the files apart"
        )


def _require_same_dims(recordings: dict[int, Recording]) -> None:
    first, last = next(iter(recordings.values())), next(reversed(recordings.values()))
    for label in ("actions", "states"):
        dims, others = getattr(last, label).shape[1], getattr(first, label).shape[1]
        if dims != others:
            raise ValueError(
                f"{last.where}: {label} have {dims} dims, those of {first.where} have {others}: load bodies apart"
            )


__all__ = ["OPENERS", "Recording", "array_files", "read_recordings"]
