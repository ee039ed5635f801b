"""Reads `meta/` of LeRobot datasets, format v2.0, v2.1 and v3.0, into one `LeRobotLayout`.

v3.0 packs many episodes into a data file and a video, and says in parquet where each lies. v2.1, and v2.0 with the same
columns, has one parquet file and one video an episode, and JSON lines.
Source: the format as huggingface/lerobot writes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from .lerobot_layout import (
    ACTION,
    DATA_PATH,
    INFO_FILE,
    TASKS_FILE,
    VIDEO_PATH,
    EpisodeRecord,
    LeRobotLayout,
    VideoSpan,
)
from .lerobot_parquet import integer_column, read_columns

TASKS_FILE_V21 = "meta/tasks.jsonl"
EPISODES_FILE_V21 = "meta/episodes.jsonl"
DATA_PATH_V21 = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH_V21 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
CHUNK_SIZE_V21 = 1000  # episodes a chunk folder, LeRobot's default


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
        older = isinstance(version, str) and version.startswith("v1.")
        remedy = "convert it with lerobot's conversion scripts" if older else "is a newer priorvla able to read it?"
        raise ValueError(f"{file}: codebase_version is {version!r}, supported: {', '.join(VERSIONS)}; {remedy}")
    features = _required(info, "features", file)
    if not isinstance(features, dict) or ACTION not in features:
        raise ValueError(f"{file}: features has no {ACTION!r}: a trajectory needs actions")
    fps = _required(info, "fps", file)
    if not isinstance(fps, int | float) or not fps > 0:
        raise ValueError(f"{file}: fps is {fps!r}, expected a positive number (Hz)")
    tasks, episodes = VERSIONS[version](root, info)
    return LeRobotLayout(
        root=root,
        fps=float(fps),
        robot_type=info.get("robot_type"),
        features=features,
        total_episodes=info.get("total_episodes"),
        tasks=tasks,
        episodes=sorted(episodes, key=lambda record: record.index),
    )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object. Raises ValueError naming the file when it holds something else."""
    return _json_object(file.read_text(encoding="utf-8"), str(file))


def _read_v30(root: Path, info: dict[str, Any]) -> tuple[dict[int, str], list[EpisodeRecord]]:
    return _tasks_v30(root / TASKS_FILE), list(_episodes_v30(root, info))


def _tasks_v30(file: Path) -> dict[int, str]:
    """Sentence by task index; the sentences are the table's pandas index, whose column name depends on the writer."""
    table = read_columns(file)
    sentences = [name for name, kind in zip(table.column_names, table.schema.types, strict=True) if _is_text(kind)]
    if "task_index" not in table.column_names or not sentences:
        raise ValueError(f"{file}: expected columns 'task' and 'task_index', the file has {table.column_names}")
    column = "task" if "task" in sentences else sentences[0]
    return dict(zip(integer_column(table, "task_index", file).tolist(), table.column(column).to_pylist(), strict=True))


def _episodes_v30(root: Path, info: dict[str, Any]) -> Iterator[EpisodeRecord]:
    files = sorted((root / "meta" / "episodes").glob("*/*.parquet"))
    if not files:
        raise FileNotFoundError(f"{root}: meta/episodes holds no parquet file: download or record the dataset again")
    video_keys = _video_keys(info)
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
                data_file=_place_v30(root, info, "data_path", DATA_PATH, row, "data"),
                videos={
                    key: VideoSpan(
                        _place_v30(root, info, "video_path", VIDEO_PATH, row, f"videos/{key}", video_key=key),
                        row[f"videos/{key}/from_timestamp"],
                    )
                    for key in video_keys
                    if row[f"videos/{key}/from_timestamp"] is not None
                },
                source=file,
            )


def _place_v30(
    root: Path, info: dict[str, Any], key: str, default: str, row: dict[str, Any], prefix: str, **names: str
) -> Path:
    indices = {part: row[f"{prefix}/{part}"] for part in ("chunk_index", "file_index")}
    return _place(root, info, key, default, **indices, **names)


def _read_v21(root: Path, info: dict[str, Any]) -> tuple[dict[int, str], list[EpisodeRecord]]:
    tasks = {row["task_index"]: row["task"] for row in _json_lines(root / TASKS_FILE_V21, ("task_index", "task"))}
    return tasks, list(_episodes_v21(root, info))


def _episodes_v21(root: Path, info: dict[str, Any]) -> Iterator[EpisodeRecord]:
    chunk_size = info.get("chunks_size") or CHUNK_SIZE_V21
    if not isinstance(chunk_size, int) or chunk_size < 1:
        raise ValueError(f"{root / INFO_FILE}: chunks_size is {chunk_size!r}, expected a number of episodes")
    file = root / EPISODES_FILE_V21
    for row in _json_lines(file, ("episode_index", "length")):
        index, length = row["episode_index"], row["length"]
        for key, value in (("episode_index", index), ("length", length)):
            if not isinstance(value, int):
                raise ValueError(f"{file}: {key} is {value!r} for episode {index!r}, expected a whole number")
        numbers = {"episode_chunk": index // chunk_size, "episode_index": index}
        yield EpisodeRecord(
            index=index,
            length=length,
            data_file=_place(root, info, "data_path", DATA_PATH_V21, **numbers),
            videos={
                key: VideoSpan(_place(root, info, "video_path", VIDEO_PATH_V21, **numbers, video_key=key), 0.0)
                for key in _video_keys(info)
            },
            source=file,
        )


def _json_lines(file: Path, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, each of which has `keys`."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: download or record the dataset again")
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            row = _json_object(line, f"{file}, line {number}")
            for key in keys:
                _required(row, key, f"{file}, line {number}")
            yield row


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where} must hold a JSON object, got {type(content).__name__}")
    return content


def _place(root: Path, info: dict[str, Any], key: str, default: str, **values: Any) -> Path:
    template = info.get(key) or default
    try:
        place = template.format(**values)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{root / INFO_FILE}: {key} {template!r} is not a template like {default!r}") from error
    return root / place


def _video_keys(info: dict[str, Any]) -> list[str]:
    return [key for key, feature in info["features"].items() if feature.get("dtype") == "video"]


def _required(values: dict[str, Any], key: str, where: Path | str) -> Any:
    if key not in values:
        raise ValueError(f"{where}: key {key!r} is missing")
    return values[key]


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


VERSIONS: dict[str, Callable[[Path, dict[str, Any]], tuple[dict[int, str], list[EpisodeRecord]]]] = {
    "v2.0": _read_v21,
    "v2.1": _read_v21,
    "v3.0": _read_v30,
}

__all__ = ["read_json", "read_layout"]
