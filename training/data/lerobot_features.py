"""The features of a dataset that we write: as `meta/info.json` describes them, and as parquet columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ...configuration.embodiment import Embodiment
from .lerobot_layout import ACTION, IMAGE_PREFIX, STATE

CHUNK_FILES = 1000  # files a chunk folder, LeRobot's default
INDEX_COLUMNS = ("frame_index", "episode_index", "index", "task_index")
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
VIDEO_CODEC = "h264"
PIXEL_FORMAT = "yuv420p"


def feature_descriptions(
    embodiment: Embodiment, cameras: Mapping[str, tuple[int, int]], *, video: bool = False
) -> dict[str, dict[str, Any]]:
    """dtype, shape and names of every feature, in the order of the columns; a body without state has no state column.

    With `video` the frames of `cameras` (height, width) lie in films instead of a column.
    """
    features: dict[str, dict[str, Any]] = {}
    if embodiment.state_dim:
        features[STATE] = _described("float32", [embodiment.state_dim], list(embodiment.state_names))
    features[ACTION] = _described("float32", [embodiment.action_dim], list(embodiment.action_names))
    for camera, (height, width) in cameras.items():
        feature = _described("video" if video else "image", [height, width, 3], ["height", "width", "channels"])
        features[IMAGE_PREFIX + camera] = feature | ({"info": _film(embodiment, height, width)} if video else {})
    features["timestamp"] = _described("float32", [1], None)
    return features | {column: _described("int64", [1], None) for column in INDEX_COLUMNS}


def arrow_schema(features: dict[str, dict[str, Any]]) -> pa.Schema:
    """The parquet schema of `features`: a vector of one dim is a plain number, as LeRobot has it; films are no column.

    Its metadata tell Hugging Face `datasets` which columns are images.
    """
    columns: list[tuple[str, pa.DataType]] = []
    described: dict[str, Any] = {}
    for key, feature in features.items():
        dtype, dim = feature["dtype"], feature["shape"][0]
        value = {"dtype": dtype, "_type": "Value"}
        if dtype == "video":
            continue
        if dtype == "image":
            columns.append((key, IMAGE_TYPE))
            described[key] = {"_type": "Image"}
        elif dim == 1:
            columns.append((key, pa.type_for_alias(dtype)))
            described[key] = value
        else:
            columns.append((key, pa.list_(pa.type_for_alias(dtype), dim)))
            described[key] = {"feature": value, "length": dim, "_type": "List"}
    return pa.schema(columns, metadata={"huggingface": json.dumps({"info": {"features": described}})})


def tasks_table(tasks: Mapping[str, int]) -> pa.Table:
    """The table of `meta/tasks.parquet`: task index by sentence, the sentence as pandas index, where LeRobot looks."""

    def column(name: str | None, kind: str, dtype: str) -> dict[str, Any]:
        return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": dtype, "metadata": None}

    pandas = {
        "index_columns": ["task"],
        "column_indexes": [column(None, "unicode", "object")],
        "columns": [column("task_index", "int64", "int64"), column("task", "unicode", "object")],
        "pandas_version": "2.0.0",
    }
    columns = {"task_index": pa.array(tasks.values(), pa.int64()), "task": pa.array(tasks.keys(), pa.string())}
    return pa.table(columns).replace_schema_metadata({"pandas": json.dumps(pandas)})


def whole_or_float(value: float) -> int | float:
    """A rate as LeRobot writes it: 20 rather than 20.0."""
    return int(value) if value == int(value) else value


def _film(embodiment: Embodiment, height: int, width: int) -> dict[str, Any]:
    return {
        "video.height": height,
        "video.width": width,
        "video.codec": VIDEO_CODEC,
        "video.pix_fmt": PIXEL_FORMAT,
        "video.is_depth_map": False,
        "video.fps": whole_or_float(embodiment.control_rate),
        "video.channels": 3,
        "has_audio": False,
    }


def _described(dtype: str, shape: list[int], names: list[str] | None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "names": names}


__all__ = [
    "CHUNK_FILES",
    "PIXEL_FORMAT",
    "arrow_schema",
    "feature_descriptions",
    "tasks_table",
    "whole_or_float",
]
