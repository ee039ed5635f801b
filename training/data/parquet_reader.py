"""Plain parquet files of episodes: one episode a file, or a column that tells them apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from .array_columns import EpisodeColumns, missing_column, plain_layout, required_text
from .column_mapping import ColumnMapping
from .frame_readers import CameraFrames, ParquetImages
from .lerobot_parquet import episode_rows, matrix_column, open_parquet, read_columns

EPISODE_NAMES = ("episode_index", "episode", "episode_id")


@contextmanager
def open_parquet_columns(file: Path) -> Iterator[ParquetColumns]:
    """Opens `file`. Raises ValueError when it is damaged."""
    with open_parquet(file) as parquet:
        names = list(parquet.schema_arrow.names)
    yield ParquetColumns(file, names)


class ParquetColumns:
    """The columns of a parquet file."""

    def __init__(self, file: Path, names: list[str]) -> None:
        self.file = file
        self.names = names

    def completed(self, mapping: ColumnMapping) -> ColumnMapping:
        return plain_layout(mapping, self.names, str(self.file), EPISODE_NAMES)

    def episodes(self, mapping: ColumnMapping) -> list[EpisodeColumns]:
        others = (mapping.timestamp, mapping.episode, mapping.task_column)
        columns = [*mapping.columns, *(column for column in others if column is not None)]
        table = read_columns(self.file, list(dict.fromkeys(columns)))
        matrices: dict[str, NDArray[Any]] = {}
        rows = {None: (0, len(table))} if mapping.episode is None else self._rows(table, mapping.episode)
        return [ParquetEpisode(self, table, matrices, name, *span) for name, span in rows.items()]

    def _rows(self, table: pa.Table, column: str) -> dict[Any, tuple[int, int]]:
        values = table.column(column)
        if values.null_count:
            raise ValueError(
                f"{self.file}: column {column!r} has {values.null_count} nulls: every row needs an episode"
            )
        kinds = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
        if not any(kind(values.type) for kind in kinds):
            raise ValueError(f"{self.file}: column {column!r} holds {values.type}, episodes are told by number or text")
        return episode_rows(values.to_numpy(), column, self.file)


class ParquetEpisode:
    """The rows [start, stop) of a table; `matrices` keeps columns that were converted, for all episodes of the file."""

    def __init__(
        self,
        columns: ParquetColumns,
        table: pa.Table,
        matrices: dict[str, NDArray[Any]],
        name: Any,
        start: int,
        stop: int,
    ) -> None:
        self.where = f"{columns.file}" if name is None else f"{columns.file}: episode {name!r}"
        self.name = name
        self._columns = columns
        self._table = table
        self._matrices = matrices
        self._start, self._stop = start, stop

    def numbers(self, column: str) -> NDArray[Any]:
        if column not in self._matrices:
            self._matrices[column] = matrix_column(self._table, column, None, self._columns.file)
        return self._matrices[column][self._start : self._stop]

    def text(self, column: str) -> str:
        return required_text(self._table.column(column)[self._start].as_py(), f"{self.where}: {column!r}")

    def frames(self, column: str, length: int) -> CameraFrames:
        if column not in self._columns.names:
            raise missing_column(column, self._columns.names, self.where)
        return ParquetImages(self._columns.file, column, self._start, length)


__all__ = ["open_parquet_columns"]
