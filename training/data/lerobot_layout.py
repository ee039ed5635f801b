"""The layout of a LeRobot dataset folder: what `meta/` says about it, independent of the format's version.

`read_layout` looks at `codebase_version` in `meta/info.json` and hands over to the reader of that version; whatever
the version, the result is one `LeRobotLayout` with an `EpisodeRecord` an episode.
Source: the format as huggingface/lerobot writes it (v3.0).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from .lerobot_parquet import integer_column, read_columns

STATE = "observation.state"
ACTION = "action"
IMAGE_PREFIX = "observation.images."
INFO_FILE = "meta/info.json"
TASKS_FILE = "meta/tasks.parquet"
STATS_FILE = "meta/stats.json"
EMBODIMENT_FILE = "meta/embodiment.json"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames of one camera lie: a video file and the second in it at which the episode starts."""

    file: Path
    start: float


@dataclass(frozen=True)
class EpisodeRecord:
    """One episode as the metadata describe it; `videos` by feature key, `source` is the file that says so."""

    index: int
    length: int
    data_file: Path
    videos: dict[str, VideoSpan]
    source: Path


@dataclass(frozen=True)
class LeRobotLayout:
    """A dataset's metadata: `features` as in info.json, `fps` in Hz, `tasks` by task index, one record an episode."""

    root: Path
    fps: float
    robot_type: str | None
    features: dict[str, dict[str, Any]]
    total_episodes: int | None
    tasks: dict[int, str]
    episodes: list[EpisodeRecord]

    @property
    def info_file(self) -> Path:
        return self.root / INFO_FILE

    @property
    def cameras(self) -> dict[str, str]:
        """Feature key by camera name (`observation.images.front` is camera `front`); depth maps are no cameras."""
        return {
            key.removeprefix(IMAGE_PREFIX).removeprefix("observation."): key
            for key, feature in self.features.items()
            if feature.get("dtype") in ("image", "video") and not _is_depth(feature)
        }

    def dim(self, key: str) -> int:
        """Number of dimensions of a vector feature; 0 when the dataset does not have it."""
        if key not in self.features:
            return 0
        shape = self.features[key].get("shape")
        if not (isinstance(shape, list) and len(shape) == 1 and isinstance(shape[0], int)):
            raise ValueError(f"{self.info_file}: features[{key!r}].shape is {shape!r}, expected one number of dims")
        return shape[0]

    def dim_names(self, key: str) -> list[str]:
        """Names of a vector feature's dimensions; `<key>_0`, `<key>_1`, ... where info.json does not name every one."""
        names = list(_flat_names(self.features.get(key, {}).get("names")))
        dim = self.dim(key)
        return names if len(names) == dim else [f"{key.rpartition('.')[2]}_{i}" for i in range(dim)]


def read_layout(root: Path) -> LeRobotLayout:
    """The layout of the dataset in folder `root`.

    Raises FileNotFoundError when it is not a LeRobot dataset or a metadata file is missing, ValueError (naming file,
    key and value) when the version is not supported or the metadata are damaged.
    """
    file = root / INFO_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{root} is not a LeRobot dataset: {INFO_FILE} is missing")
    info = read_json(file)
    version = _required(info, "codebase_version", file)
    if version not in VERSIONS:
        older = isinstance(version, str) and version.startswith(("v1.", "v2."))
        remedy = (
            "convert it with lerobot's convert_dataset_v21_to_v30" if older else "is a newer priorvla able to read it?"
        )
        raise ValueError(f"{file}: codebase_version is {version!r}, supported: {', '.join(VERSIONS)}; {remedy}")
    return VERSIONS[version](root, info)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming the file when it holds something else."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, got {type(content).__name__}")
    return content


def _read_v30(root: Path, info: dict[str, Any]) -> LeRobotLayout:
    file = root / INFO_FILE
    features = _required(info, "features", file)
    if not isinstance(features, dict) or ACTION not in features:
        raise ValueError(f"{file}: features has no {ACTION!r}: a trajectory needs actions")
    fps = _required(info, "fps", file)
    if not isinstance(fps, int | float) or not fps > 0:
        raise ValueError(f"{file}: fps is {fps!r}, expected a positive number (Hz)")
    return LeRobotLayout(
        root=root,
        fps=float(fps),
        robot_type=info.get("robot_type"),
        features=features,
        total_episodes=info.get("total_episodes"),
        tasks=_read_tasks(root / TASKS_FILE),
        episodes=sorted(_read_episodes(root, info), key=lambda record: record.index),
    )


def _read_tasks(file: Path) -> dict[int, str]:
    """Sentence by task index; the sentences are the table's pandas index, whose column name depends on the writer."""
    table = read_columns(file)
    sentences = [name for name, kind in zip(table.column_names, table.schema.types, strict=True) if _is_text(kind)]
    if "task_index" not in table.column_names or not sentences:
        raise ValueError(f"{file}: expected columns 'task' and 'task_index', the file has {table.column_names}")
    column = "task" if "task" in sentences else sentences[0]
    return dict(zip(integer_column(table, "task_index", file).tolist(), table.column(column).to_pylist(), strict=True))


def _read_episodes(root: Path, info: dict[str, Any]) -> Iterator[EpisodeRecord]:
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{root}: meta/episodes holds no parquet file: download or record the dataset again")
    video_keys = [key for key, feature in info["features"].items() if feature.get("dtype") == "video"]
    places = [f"videos/{key}/{part}" for key in video_keys for part in ("chunk_index", "file_index", "from_timestamp")]
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index", *places]
    for file in files:
        for row in read_columns(file, columns).to_pylist():
            for key in columns[:4]:
                if row[key] is None:
                    raise ValueError(f"{file}: column {key!r} is null for episode {row['episode_index']}")
            yield EpisodeRecord(
                index=row["episode_index"],
                length=row["length"],
                data_file=_place(root, info, "data_path", DATA_PATH, row, "data"),
                videos={
                    key: VideoSpan(
                        _place(root, info, "video_path", VIDEO_PATH, row, f"videos/{key}", video_key=key),
                        row[f"videos/{key}/from_timestamp"],
                    )
                    for key in video_keys
                    if row[f"videos/{key}/from_timestamp"] is not None
                },
                source=file,
            )


def _place(
    root: Path, info: dict[str, Any], key: str, default: str, row: dict[str, Any], prefix: str, **names: str
) -> Path:
    template = info.get(key) or default
    try:
        place = template.format(
            chunk_index=row[f"{prefix}/chunk_index"], file_index=row[f"{prefix}/file_index"], **names
        )
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{root / INFO_FILE}: {key} {template!r} is not a template like {default!r}") from error
    return root / place


def _required(info: dict[str, Any], key: str, file: Path) -> Any:
    if key not in info:
        raise ValueError(f"{file}: key {key!r} is missing")
    return info[key]


def _flat_names(names: Any) -> Iterator[str]:
    """Names stand in info.json as a list, a list of lists, or a dict of lists ({"motors": [...]})."""
    if isinstance(names, str):
        yield names
    elif isinstance(names, dict):
        yield from _flat_names(list(names.values()))
    elif isinstance(names, list):
        for entry in names:
            yield from _flat_names(entry)


def _is_depth(feature: dict[str, Any]) -> bool:
    details = {**feature, **(feature.get("info") or {}), **(feature.get("video_info") or {})}
    return bool(details.get("is_depth_map") or details.get("video.is_depth_map"))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


VERSIONS: dict[str, Callable[[Path, dict[str, Any]], LeRobotLayout]] = {"v3.0": _read_v30}

__all__ = ["EpisodeRecord", "LeRobotLayout", "VideoSpan", "read_layout"]
