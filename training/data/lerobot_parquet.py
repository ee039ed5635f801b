"""Columns of a parquet file as numpy arrays, with errors that name file, column, row and value."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from .column_mapping import nearest_name

UNREADABLE = "is not a readable parquet file (truncated or damaged?)"


def open_parquet(file: Path) -> pq.ParquetFile:
    """Opens `file`; reads its footer only. Raises FileNotFoundError or, when it is damaged, ValueError."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: download or record the dataset again")
    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{file} {UNREADABLE}: {error}. Download or record it again") from error


def read_columns(file: Path, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None) -> pa.Table:
    """The named columns (default: all) of `file`, and only their bytes. Raises ValueError naming a missing column."""
    with open_parquet(file) as parquet:
        present = parquet.schema_arrow.names
        for column in columns or ():
            if column not in present:
                raise ValueError(
                    f"{file}: column {column!r} is missing, the file has {', '.join(map(repr, present))}"
                    f"{nearest_name(column, present)}"
                )
        try:
            names = None if columns is None else list(columns)
            if row_groups is None:
                return parquet.read(columns=names)
            return parquet.read_row_groups(list(row_groups), columns=names)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{file} {UNREADABLE}: {error}. Download or record it again") from error


def integer_column(table: pa.Table, column: str, file: Path) -> NDArray[np.int64]:
    """A column of whole numbers as (N,) int64; a list of one counts as a number."""
    return matrix_column(table, column, 1, file)[:, 0].astype(np.int64)


def matrix_column(table: pa.Table, column: str, dim: int | None, file: Path) -> NDArray[Any]:
    """A column of numbers, or of lists of `dim` numbers, as (N, dim) in the file's dtype.

    `dim` is what meta/info.json says, or None for as many as the first row has.

    Raises ValueError naming file, column and row when a value is null, not a number, or has other dims.
    """
    array = table.column(column).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], type=array.type)
    _require_no_null(array, column, file)
    if pa.types.is_fixed_size_list(array.type):
        lengths = np.full(len(array), array.type.list_size)
    elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        lengths = array.value_lengths().to_numpy(zero_copy_only=False)
    else:
        lengths = np.ones(len(array), dtype=np.int64)
    dim = _required_dim(lengths, dim, column, file)
    if pa.types.is_fixed_size_list(array.type) or pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        array = array.flatten()
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type) or pa.types.is_boolean(array.type)):
        raise ValueError(f"{file}: column {column!r} holds {array.type}, numbers are needed")
    _require_no_null(array, column, file, per_row=dim)
    return array.to_numpy(zero_copy_only=False).reshape(len(lengths), dim)


def episode_rows(episode: NDArray[Any], column: str, file: Path) -> dict[Any, tuple[int, int]]:
    """(first row, row after the last) by episode, for a column (N,) that tells to which episode every row belongs.

    Raises ValueError when an episode's rows lie apart.
    """
    if not len(episode):
        return {}
    starts = [0, *(np.flatnonzero(episode[1:] != episode[:-1]) + 1).tolist()]
    stops = [*starts[1:], len(episode)]
    rows: dict[Any, tuple[int, int]] = {}
    for start, stop in zip(starts, stops, strict=True):
        name = episode[start].item() if isinstance(episode[start], np.generic) else episode[start]
        if name in rows:
            raise ValueError(f"{file}: column {column!r}: episode {name} starts again in row {start}")
        rows[name] = (start, stop)
    return rows


def _require_no_null(array: pa.Array, column: str, file: Path, per_row: int = 1) -> None:
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0]) // per_row
        raise ValueError(f"{file}: column {column!r} is null in row {row}: every row needs a value")


def _required_dim(lengths: NDArray[Any], dim: int | None, column: str, file: Path) -> int:
    """The one number of dims of all rows."""
    says = "meta/info.json says"
    if dim is None:
        dim, says = (int(lengths[0]) if len(lengths) else 0), "row 0 has"
    wrong = np.flatnonzero(lengths != dim)
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"{file}: column {column!r} has {lengths[row]} dims in row {row}, {says} {dim}")
    return dim


__all__ = ["episode_rows", "integer_column", "matrix_column", "open_parquet", "read_columns"]
