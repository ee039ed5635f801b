"""Parquet files of a dataset, here or on the Hub, as a stream of episodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from numpy.typing import NDArray

from ...configuration.embodiment import Embodiment
from ...hub_cards.checkpoints import split_revision
from .lerobot_layout import ACTION, STATE
from .lerobot_parquet import episode_rows, integer_column, matrix_column
from .trajectory import Trajectory, TrajectorySource

EPISODE = "episode_index"
DATA_FILE = re.compile(r"data/.*\.parquet")
ROWS = 4096  # of a file that are held at once, beside the episode that they belong to


@dataclass(frozen=True)
class StreamedSource:
    """A dataset as parquet files, each of which holds whole episodes, one after the other.

    Args:
        root: its folder, or on the Hub `owner/name@commit`.
        files: local paths or `hf://` addresses, in a fixed order.
        embodiment: the body that made it.
        state, action, episode: names of the columns; a body without state dims has no state column.
    """

    root: str
    files: Sequence[str]
    embodiment: Embodiment
    state: str = STATE
    action: str = ACTION
    episode: str = EPISODE

    @classmethod
    def from_lerobot(cls, path: str | Path, embodiment: Embodiment) -> StreamedSource:
        """The data files of a LeRobot dataset: a folder, or a Hub id, of which nothing is fetched but their names.

        Their addresses name a commit: what `owner/name` (its newest) or `owner/name@revision` stands for now, so that a
        dataset that changes during a run does not change the run.

        Raises FileNotFoundError when there is none.
        """
        if Path(path).is_dir():
            root, files = str(path), [str(file) for file in sorted((Path(path) / "data").rglob("*.parquet"))]
        else:
            name, revision = split_revision(str(path))
            try:
                found = HfApi().dataset_info(name, revision=revision)
            except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
                raise FileNotFoundError(f"{path} is neither a folder here nor a dataset on the Hub: {error}") from error
            listed = sorted(file.rfilename for file in found.siblings or ())
            root = f"{name}@{found.sha}"
            files = [f"hf://datasets/{root}/{file}" for file in listed if DATA_FILE.fullmatch(file)]
        if not files:
            raise FileNotFoundError(f"{path} has no data/**/*.parquet: give a LeRobot dataset's folder or Hub id")
        return cls(root, files, embodiment)

    def episodes(self, number: int) -> Iterator[Trajectory]:
        """The episodes of the file at position `number`.

        Raises ValueError naming the file, when it cannot be read, lacks a column, holds a value that is missing, not
        finite or of other dims, or when an episode's rows lie apart.
        """
        file = Path(self.files[number])
        waiting: list[tuple[NDArray[Any], NDArray[Any]]] = []
        done: set[int] = set()
        current: int | None = None
        for table in self._tables(number):
            states, actions = self._matrices(table, file)
            for episode, (start, stop) in episode_rows(
                integer_column(table, self.episode, file), self.episode, file
            ).items():
                if episode != current:
                    if current is not None:
                        yield self._trajectory(current, waiting, file)
                        done.add(current)
                    if episode in done:
                        raise ValueError(f"{file}: column {self.episode!r}: episode {episode} starts again")
                    current, waiting = episode, []
                waiting.append((states[start:stop], actions[start:stop]))
        if current is not None:
            yield self._trajectory(current, waiting, file)

    def holding(self, trajectories: list[Trajectory]) -> TrajectorySource:
        """A source of some of its episodes."""
        return TrajectorySource(Path(self.root), "streamed", self.embodiment, trajectories)

    @property
    def _columns(self) -> list[str]:
        return [*([self.state] if self.embodiment.state_dim else []), self.action, self.episode]

    @cached_property
    def _stream(self) -> Any:
        arguments = {"data_files": list(self.files), "columns": self._columns}
        return datasets.load_dataset("parquet", split="train", streaming=True, **arguments).with_format("arrow")

    def _tables(self, number: int) -> Iterator[pa.Table]:
        try:
            yield from self._stream.shard(len(self.files), number).iter(batch_size=ROWS)
        except (pa.ArrowException, ValueError, OSError) as error:
            raise ValueError(
                f"{self.files[number]}: cannot be streamed with the columns {', '.join(self._columns)}: {error}"
            ) from error

    def _matrices(self, table: pa.Table, file: Path) -> tuple[NDArray[Any], NDArray[Any]]:
        body = self.embodiment
        actions = matrix_column(table, self.action, body.action_dim, file)
        if not body.state_dim:
            return np.zeros((len(actions), 0), dtype=np.float32), actions
        return matrix_column(table, self.state, body.state_dim, file), actions

    def _trajectory(self, episode: int, parts: list[tuple[NDArray[Any], NDArray[Any]]], file: Path) -> Trajectory:
        states, actions = (np.concatenate(column) for column in zip(*parts, strict=True))
        times = np.arange(len(actions)) / self.embodiment.control_rate
        return Trajectory(states, actions, "", episode, times, None, str(file))


__all__ = ["StreamedSource"]
