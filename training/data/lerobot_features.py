"""The features of a dataset that we write: as `meta/info.json` describes them, and as parquet columns."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from ...configuration.embodiment import Embodiment
from .lerobot_layout import ACTION, IMAGE_PREFIX, STATE

INDEX_COLUMNS = ("frame_index", "episode_index", "index", "task_index")
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def feature_descriptions(embodiment: Embodiment, cameras: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, Any]]:
    """dtype, shape and names of every column, in the order of the columns; a body without state has no state column."""
    features: dict[str, dict[str, Any]] = {}
    if embodiment.state_dim:
        features[STATE] = _described("float32", [embodiment.state_dim], list(embodiment.state_names))
    features[ACTION] = _described("float32", [embodiment.action_dim], list(embodiment.action_names))
    for camera, (height, width) in cameras.items():
        features[IMAGE_PREFIX + camera] = _described("image", [height, width, 3], ["height", "width", "channels"])
    features["timestamp"] = _described("float32", [1], None)
    return features | {column: _described("int64", [1], None) for column in INDEX_COLUMNS}


def arrow_schema(features: dict[str, dict[str, Any]]) -> pa.Schema:
    """The parquet schema of `features`: a vector of one dim is a plain number, as LeRobot has it.

    Its metadata tell Hugging Face `datasets` which columns are images.
    """
    columns: list[tuple[str, pa.DataType]] = []
    described: dict[str, Any] = {}
    for key, feature in features.items():
        dtype, dim = feature["dtype"], feature["shape"][0]
        value = {"dtype": dtype, "_type": "Value"}
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


def _described(dtype: str, shape: list[int], names: list[str] | None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "names": names}


__all__ = ["arrow_schema", "feature_descriptions", "tasks_table"]
