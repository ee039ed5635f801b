"""Writes LeRobot v3.0 datasets, one episode at a time: numbers in parquet, pictures beside them as PNG or as films.

The dataset grows in a hidden folder beside its place and is moved there, whole, by `finalize`: whatever goes wrong, no
half-written dataset is ever found. Source of the format: huggingface/lerobot, codebase version v3.0.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from ...configuration.embodiment import Embodiment
from .lerobot_features import CHUNK_FILES, arrow_schema, feature_descriptions, tasks_table, whole_or_float
from .lerobot_layout import (
    ACTION,
    DATA_PATH,
    EMBODIMENT_FILE,
    EPISODES_PATH,
    IMAGE_PREFIX,
    INFO_FILE,
    STATE,
    STATS_FILE,
    TASKS_FILE,
    VIDEO_PATH,
)
from .lerobot_staging import StagedFolder
from .lerobot_statistics import image_histogram, image_statistics, vector_statistics
from .trajectory import require_finite

if TYPE_CHECKING:
    from .video_writer import CameraVideos

OWN_FILES = (INFO_FILE, STATS_FILE, TASKS_FILE, EMBODIMENT_FILE, EPISODES_PATH.format(chunk_index=0, file_index=0))
PNG_COMPRESSION = 1  # of 0-9: three times as fast as Pillow's default, a few per cent larger


class LeRobotDatasetWriter:
    """Writes a LeRobot v3.0 dataset to the new folder `root`.

    Use it in a `with` block: leaving it finalizes the dataset, an exception in it leaves nothing behind.

    Args:
        root: the dataset's folder; must not exist.
        embodiment: the body that acts; its control rate is the dataset's fps. Stored as `meta/embodiment.json` with the
            statistics of what was written, or none when it learns actions relative to the state.
        cameras: (height, width) in pixels by camera name, a subset of the embodiment's cameras; empty for motion only.
        video: store pictures as H.264 films instead of PNG: lossy, even sides only, a quarter of the size or less.
        overwrite: replace a LeRobot dataset at `root`, when the new one is complete.
        data_file_megabytes, video_file_megabytes: a file that would grow beyond it is followed by the next one.

    Raises:
        FileExistsError: `root` exists (and is not a dataset that `overwrite` may replace).
        ValueError: a camera that the embodiment does not have, a size below one pixel, an odd one with `video`.
        RuntimeError: `video`, and PyAV has no H.264 encoder.
    """

    def __init__(
        self,
        root: str | Path,
        embodiment: Embodiment,
        cameras: Mapping[str, tuple[int, int]] | None = None,
        *,
        video: bool = False,
        overwrite: bool = False,
        data_file_megabytes: float = 100,
        video_file_megabytes: float = 500,
    ) -> None:
        self.root = Path(root)
        self.embodiment = embodiment
        self.cameras = dict(cameras or {})
        self._file_bytes = data_file_megabytes * 2**20
        self._video_file_megabytes = video_file_megabytes
        self._staged = StagedFolder(self.root, overwrite=overwrite)
        for camera, (height, width) in self.cameras.items():
            if camera not in embodiment.cameras:
                raise ValueError(
                    f"{self.root}: embodiment {embodiment.name!r} has no camera {camera!r}, it has {embodiment.cameras}"
                )
            if height < 1 or width < 1:
                raise ValueError(f"{self.root}: camera {camera!r} has size {(height, width)}, expected (height, width)")
        self._videos = self._make_videos(video_file_megabytes * 2**20) if video else {}
        self._features = feature_descriptions(embodiment, self.cameras, video=video)
        self._schema = arrow_schema(self._features)
        self._file: pq.ParquetWriter | None = None
        self._file_index = -1
        self._bytes_in_file = 0
        self._frames = 0
        self._tasks: dict[str, int] = {}
        self._episodes: list[dict[str, Any]] = []
        self._columns: list[dict[str, NDArray[Any]]] = []
        self._histograms: dict[str, NDArray[np.int64]] = {}
        self._closed = False

    def __len__(self) -> int:
        """The number of episodes added so far."""
        return len(self._episodes)

    def add_episode(
        self, states: ArrayLike, actions: ArrayLike, task: str, images: Mapping[str, NDArray[np.uint8]] | None = None
    ) -> int:
        """Writes one episode of T steps and returns its index.

        Args:
            states: (T, state_dim) raw; actions: (T, action_dim) raw; stored as float32.
            task: the instruction, a sentence.
            images: (T, height, width, 3) uint8 RGB for each of the writer's cameras.

        Raises:
            ValueError: no steps, other dims, lengths or image sizes than announced, a missing or unknown camera, a
                value that is not finite, an empty task; names dataset, key and value. Nothing of the episode is written
                then, and the writer can go on with the next.
        """
        if self._closed:
            raise ValueError(f"{self.root}: the writer is closed, no episode can be added")
        where = f"{self.root}: episode {len(self)}"
        if not isinstance(task, str) or not task.strip():
            raise ValueError(f"{where}: task is {task!r}, expected a sentence")
        body = self.embodiment
        vectors = {ACTION: _checked_vectors(actions, body.action_names, where, ACTION)}
        if body.state_dim or np.size(states):
            vectors[STATE] = _checked_vectors(states, body.state_names, where, STATE, len(vectors[ACTION]))
        pictures = self._checked_images(images or {}, len(vectors[ACTION]), where)
        try:
            self._write(vectors, task, pictures)
        except BaseException:
            self.abort()
            raise
        return len(self) - 1

    def add_file(self, name: str, text: str) -> None:
        """Puts a file of one's own, for example `meta/origin.json`, into the dataset; it appears with the rest of it.

        What lies in `meta/` or `data/` counts in the dataset's fingerprint: leave out what changes from run to run.

        Raises:
            ValueError: the writer is closed, `name` leads out of the dataset, or is that of a file which is there or
                which the writer makes.
        """
        place = self._staged.path / name
        if self._closed:
            raise ValueError(f"{self.root}: the writer is closed, no file can be added")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{self.root}: file {name!r} is outside of the dataset: name it relative to its root")
        if place.exists() or Path(name).as_posix() in OWN_FILES:
            raise ValueError(f"{self.root}: the dataset has a file {name!r} already: choose another name")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")

    def finalize(self) -> Path:
        """Adds metadata and statistics, moves the dataset to `root`, returns it. Raises ValueError without episodes."""
        if self._closed:
            raise ValueError(f"{self.root}: the writer is closed already")
        try:
            if not self._episodes:
                raise ValueError(f"{self.root}: a dataset needs at least one episode, none was added")
            self._close_files()
            self._write_metadata()
            self._staged.publish()
        finally:
            self.abort()
        return self.root

    def abort(self) -> None:
        """Closes the writer and removes what was not finalized."""
        self._closed = True
        try:
            self._close_files()
        finally:
            self._staged.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
        elif not self._closed:
            self.finalize()

    def _checked_images(
        self, images: Mapping[str, NDArray[np.uint8]], length: int, where: str
    ) -> dict[str, NDArray[np.uint8]]:
        for camera in images:
            if camera not in self.cameras:
                raise ValueError(f"{where}: images of camera {camera!r}, the dataset has {list(self.cameras)}")
        for camera, (height, width) in self.cameras.items():
            if camera not in images:
                raise ValueError(f"{where}: images of camera {camera!r} are missing")
            frames = np.asarray(images[camera])
            expected = (length, height, width, 3)
            if frames.dtype != np.uint8 or frames.shape != expected:
                raise ValueError(
                    f"{where}: images of camera {camera!r} are {frames.dtype} {frames.shape}, expected uint8 {expected}"
                )
        return {camera: np.asarray(images[camera]) for camera in self.cameras}

    def _write(self, vectors: dict[str, NDArray[np.float32]], task: str, images: dict[str, NDArray[np.uint8]]) -> None:
        length = len(vectors[ACTION])
        task_index = self._tasks.setdefault(task, len(self._tasks))
        steps = np.arange(length)
        columns: dict[str, NDArray[Any]] = {
            **vectors,
            "timestamp": (steps / self.embodiment.control_rate).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full(length, len(self)),
            "index": self._frames + steps,
            "task_index": np.full(length, task_index),
        }
        pictures = {IMAGE_PREFIX + camera: frames for camera, frames in images.items()}
        self._append(self._table(columns, pictures))
        places = [videos.add_episode(pictures[key]) for key, videos in self._videos.items()]
        statistics = {key: vector_statistics(values.reshape(length, -1)) for key, values in columns.items()}
        for key, frames in pictures.items():
            histogram = image_histogram(frames)
            self._histograms[key] = self._histograms.get(key, 0) + histogram
            statistics[key] = image_statistics(histogram, length)
        self._episodes.append(
            {
                "episode_index": len(self),
                "tasks": [task],
                "length": length,
                "data/chunk_index": self._file_index // CHUNK_FILES,
                "data/file_index": self._file_index % CHUNK_FILES,
                **{column: value for place in places for column, value in place.items()},
                "dataset_from_index": self._frames,
                "dataset_to_index": self._frames + length,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **{f"stats/{key}/{name}": value for key, parts in statistics.items() for name, value in parts.items()},
            }
        )
        self._columns.append(columns)
        self._frames += length

    def _table(self, columns: dict[str, NDArray[Any]], pictures: dict[str, NDArray[np.uint8]]) -> pa.Table:
        arrays = []
        for column in self._schema:
            if column.name in pictures:
                rows = [{"bytes": _png(frame), "path": None} for frame in pictures[column.name]]
                arrays.append(pa.array(rows, type=column.type))
                continue
            flat = pa.array(np.ascontiguousarray(columns[column.name]).reshape(-1))
            if pa.types.is_fixed_size_list(column.type):
                flat = pa.FixedSizeListArray.from_arrays(flat, type=column.type)
            arrays.append(flat)
        return pa.Table.from_arrays(arrays, schema=self._schema)

    def _append(self, episode: pa.Table) -> None:
        """One row group an episode, so that a reader of its images reads no other's."""
        if self._file is None or self._bytes_in_file + episode.nbytes > self._file_bytes:
            self._close_file()
            self._file_index += 1
            place = self._place(DATA_PATH, self._file_index // CHUNK_FILES, self._file_index % CHUNK_FILES)
            self._file = pq.ParquetWriter(place, self._schema, use_dictionary=["episode_index", "task_index"])
            self._bytes_in_file = 0
        self._file.write_table(episode, row_group_size=len(episode))
        self._bytes_in_file += episode.nbytes

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _make_videos(self, file_bytes: float) -> dict[str, CameraVideos]:
        from .video_writer import CameraVideos

        root, rate = self._staged.path, self.embodiment.control_rate
        keys = {IMAGE_PREFIX + camera: size for camera, size in self.cameras.items()}
        return {key: CameraVideos(root, key, size, rate, file_bytes) for key, size in keys.items()}

    def _close_files(self) -> None:
        with ExitStack() as files:  # closes every one, also when one cannot be closed
            for videos in self._videos.values():
                files.callback(videos.close)
            files.callback(self._close_file)

    def _write_metadata(self) -> None:
        info = {
            "codebase_version": "v3.0",
            "robot_type": self.embodiment.name,
            "total_episodes": len(self),
            "total_frames": self._frames,
            "total_tasks": len(self._tasks),
            "chunks_size": CHUNK_FILES,
            "data_files_size_in_mb": max(1, round(self._file_bytes / 2**20)),
            "video_files_size_in_mb": max(1, round(self._video_file_megabytes)),
            "fps": whole_or_float(self.embodiment.control_rate),
            "splits": {"train": f"0:{len(self)}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": self._features,
        }
        columns = {key: np.concatenate([part[key] for part in self._columns]) for key in self._columns[0]}
        statistics = {key: vector_statistics(values.reshape(self._frames, -1)) for key, values in columns.items()}
        statistics |= {key: image_statistics(histogram, self._frames) for key, histogram in self._histograms.items()}
        states = columns.get(STATE, np.zeros((self._frames, 0), np.float32))
        body = self.embodiment  # what is learned relative to the state has statistics of windows: unknown here
        self.embodiment = body.changed({}) if body.needs_reference else body.with_statistics(states, columns[ACTION])
        pq.write_table(pa.Table.from_pylist(self._episodes), self._place(EPISODES_PATH, 0, 0))
        pq.write_table(tasks_table(self._tasks), self._staged.path / TASKS_FILE)
        for file, content in (
            (INFO_FILE, info),
            (STATS_FILE, statistics),
            (EMBODIMENT_FILE, self.embodiment.to_dict()),
        ):
            (self._staged.path / file).write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")

    def _place(self, template: str, chunk: int, file: int) -> Path:
        place = self._staged.path / template.format(chunk_index=chunk, file_index=file)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place


def _checked_vectors(
    values: ArrayLike, names: list[str], where: str, key: str, length: int | None = None
) -> NDArray[np.float32]:
    array = np.asarray(values, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] != len(names):
        raise ValueError(f"{where}: {key!r} has shape {array.shape}, expected (T, {len(names)}): dims {names}")
    if len(array) == 0:
        raise ValueError(f"{where}: {key!r} has no steps (length 0): leave the episode out")
    if length is not None and len(array) != length:
        raise ValueError(f"{where}: {key!r} has {len(array)} steps, {ACTION!r} has {length}: they must be equally many")
    require_finite(array, f"{where}: {key!r}", names)
    return array


def _png(frame: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", compress_level=PNG_COMPRESSION)
    return buffer.getvalue()


__all__ = ["LeRobotDatasetWriter"]
