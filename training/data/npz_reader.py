"""NPZ files of episodes: one episode a file, or several behind one another with the steps at which they end."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from .array_columns import EpisodeColumns, as_matrix, missing_column, plain_layout, required_text
from .column_mapping import ColumnMapping
from .frame_readers import CameraFrames

EPISODE_ENDS_NAMES = ("episode_ends",)
UNREADABLE = "is not a readable NPZ file (truncated or damaged?)"


@contextmanager
def open_npz(file: Path) -> Iterator[NpzColumns]:
    """Opens `file`. Raises ValueError when it is damaged or pickled."""
    try:
        content = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} {UNREADABLE}: {error}. Save it again by np.savez") from error
    if not isinstance(content, NpzFile):
        raise ValueError(f"{file} holds a single array, named ones are needed: save it by np.savez(file, actions=...)")
    with content:
        yield NpzColumns(file, content)


class NpzColumns:
    """An open NPZ file; an array is read once."""

    def __init__(self, file: Path, content: NpzFile) -> None:
        self.file = file
        self._content = content
        self._arrays: dict[str, NDArray[Any]] = {}

    def completed(self, mapping: ColumnMapping) -> ColumnMapping:
        return plain_layout(mapping, list(self._content), str(self.file), EPISODE_ENDS_NAMES)

    def episodes(self, mapping: ColumnMapping) -> list[EpisodeColumns]:
        if mapping.episode is None:
            return [NpzEpisode(self, None, 0)]
        ends = self._ends(mapping.episode)
        return [NpzEpisode(self, ends, index) for index in range(len(ends))]

    def array(self, name: str) -> NDArray[Any]:
        """The array `name`. Raises ValueError when it is missing, damaged or pickled."""
        if name not in self._content:
            raise missing_column(name, list(self._content), str(self.file))
        if name not in self._arrays:
            try:
                self._arrays[name] = self._content[name]
            except ValueError as error:
                raise ValueError(
                    f"{self.file}: {name!r} cannot be read ({error}): pickled objects are refused, because loading "
                    "them can run any program; save it as an array of numbers"
                ) from error
            except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise ValueError(f"{self.file} {UNREADABLE}: {name!r}: {error}. Save it again by np.savez") from error
        return self._arrays[name]

    def _ends(self, name: str) -> NDArray[np.int64]:
        ends = self.array(name)
        if ends.ndim != 1 or ends.dtype.kind not in "iu" or (np.diff(ends.astype(np.int64), prepend=0) < 1).any():
            raise ValueError(
                f"{self.file}: {name!r} must hold the step after the last of every episode, ascending whole numbers, "
                f"got {ends.dtype} of shape {ends.shape}: {ends.reshape(-1)[:8].tolist()}"
            )
        return ends.astype(np.int64)


class NpzEpisode:
    """An episode between two of the steps `ends`, or, when there are none, the whole file."""

    def __init__(self, columns: NpzColumns, ends: NDArray[np.int64] | None, index: int) -> None:
        self.where = f"{columns.file}" if ends is None else f"{columns.file}: entry {index}"
        self.name = None
        self._columns = columns
        self._ends = ends
        self._index = index

    def numbers(self, column: str) -> NDArray[Any]:
        values = as_matrix(self._columns.array(column), f"{self._columns.file}: {column!r}")
        if self._ends is None:
            return values
        if len(values) != self._ends[-1]:
            raise ValueError(
                f"{self._columns.file}: {column!r} has {len(values)} steps, the last episode ends at {self._ends[-1]}"
            )
        return values[self._first() : self._ends[self._index]]

    def text(self, column: str) -> str:
        """Sentences may be one for all, one an episode or one a step."""
        values = self._columns.array(column).reshape(-1)
        per_episode = self._ends is not None and len(values) == len(self._ends)
        position = self._index if per_episode else self._first() if len(values) > 1 else 0
        if position >= len(values):
            raise ValueError(f"{self.where}: {column!r} has {len(values)} entries, step {position} has none")
        return required_text(values[position], f"{self._columns.file}: {column!r}")

    def frames(self, column: str, length: int) -> CameraFrames:
        raise ValueError(
            f"{self._columns.file}: images {column!r} cannot be read frame by frame from an NPZ file: store them in "
            "HDF5, or write the dataset by LeRobotDatasetWriter"
        )

    def _first(self) -> int:
        return 0 if self._ends is None or self._index == 0 else int(self._ends[self._index - 1])


__all__ = ["open_npz"]
