"""What a trajectory store knows of its episodes and sources, and the two files that say it on disk."""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ...configuration.embodiment import Embodiment
from .lerobot_parquet import integer_column, read_columns

STORE_VERSION = 1
INDEX_FILE, EPISODES_FILE = "store.json", "episodes.parquet"


@dataclass(frozen=True)
class StoredSource:
    """A dataset in a store: what `TrajectorySource` says of it, and how many of its episodes the store has."""

    root: Path
    fingerprint: str
    embodiment: Embodiment
    episodes: int


@dataclass(frozen=True, eq=False)
class EpisodeTable:
    """One entry an episode, in the order of their sources.

    `source` and `body` are positions in the store's lists, `start` is the episode's first row in its body's arrays,
    `length` its steps, `episode_index` its number within its dataset, `task` a position in the store's `tasks`.
    """

    source: NDArray[np.int32]
    body: NDArray[np.int32]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    episode_index: NDArray[np.int64]
    task: NDArray[np.int32]

    @classmethod
    def from_rows(cls, rows: array[int]) -> EpisodeTable:
        """From the entries of all episodes, each in the order of the columns."""
        table = np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS)).T
        columns: dict[str, Any] = {
            name: column.astype(COLUMNS[name]) for name, column in zip(COLUMNS, table, strict=True)
        }
        return cls(**columns)

    def __len__(self) -> int:
        return len(self.start)

    def select(self, episodes: NDArray[Any]) -> EpisodeTable:
        """The table of the chosen episodes: positions, or a boolean mask."""
        return EpisodeTable(**{name: getattr(self, name)[episodes] for name in COLUMNS})


NARROW = ("source", "body", "task")
COLUMNS = {column.name: np.int32 if column.name in NARROW else np.int64 for column in fields(EpisodeTable)}


def write_index(folder: Path, sources: Sequence[StoredSource], tasks: Sequence[str], episodes: EpisodeTable) -> None:
    """Writes `store.json` and `episodes.parquet` into `folder`."""
    columns = {name: getattr(episodes, name) for name in COLUMNS if name != "task"}
    words = pa.DictionaryArray.from_arrays(pa.array(episodes.task), pa.array(list(tasks), pa.string()))
    pq.write_table(pa.table({**columns, "task": words}), folder / EPISODES_FILE)
    entries = [
        {
            "root": str(source.root),
            "fingerprint": source.fingerprint,
            "episodes": source.episodes,
            "embodiment": source.embodiment.to_dict(),
        }
        for source in sources
    ]
    index = {"version": STORE_VERSION, "steps": int(episodes.length.sum()), "sources": entries}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def read_index(folder: Path) -> tuple[list[StoredSource], list[str], EpisodeTable]:
    """Sources, tasks and episodes of the store in `folder`.

    Raises FileNotFoundError when there is none, ValueError naming a file that is damaged or of another version, or
    when the two files do not belong together.
    """
    file = folder / INDEX_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{folder} is not a trajectory store: {INDEX_FILE} is missing")
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        if index["version"] != STORE_VERSION:
            raise ValueError(f"version {index['version']!r} is not {STORE_VERSION}: update priorvla or build it again")
        sources = [_source(entry) for entry in index["sources"]]
        count, steps = sum(source.episodes for source in sources), index["steps"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: not a valid index of a trajectory store: {error}") from error
    tasks, episodes = _read_episodes(folder / EPISODES_FILE)
    if (len(episodes), int(episodes.length.sum())) != (count, steps):
        raise ValueError(
            f"{folder / EPISODES_FILE} has {len(episodes)} episodes of {episodes.length.sum()} steps, {INDEX_FILE} "
            f"says {count} of {steps}: the two do not belong together, build the store again"
        )
    return sources, tasks, episodes


def _source(entry: dict[str, Any]) -> StoredSource:
    body = Embodiment.from_dict(entry["embodiment"])
    return StoredSource(Path(entry["root"]), entry["fingerprint"], body, entry["episodes"])


def _read_episodes(file: Path) -> tuple[list[str], EpisodeTable]:
    table = read_columns(file, list(COLUMNS))
    words = table.column("task").cast(pa.string()).combine_chunks().dictionary_encode()
    columns: dict[str, Any] = {name: integer_column(table, name, file) for name in COLUMNS if name != "task"}
    columns["task"] = words.indices.to_numpy(zero_copy_only=False)
    return words.dictionary.to_pylist(), EpisodeTable(**{name: columns[name].astype(COLUMNS[name]) for name in COLUMNS})


__all__ = ["EPISODES_FILE", "INDEX_FILE", "EpisodeTable", "StoredSource", "read_index", "write_index"]
