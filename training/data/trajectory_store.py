"""Raw steps of many datasets in a few flat arrays, in memory or memory-mapped: what windows are gathered from."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...configuration.embodiment import Embodiment
from .lerobot_staging import StagedFolder
from .mapped_rows import MappedRows, RowWriter
from .store_index import EPISODES_FILE, INDEX_FILE, EpisodeTable, StoredSource, read_index, write_index
from .trajectory import Trajectory, TrajectorySource

LABELS = ("states", "actions")
RELEASE_STEPS = 1 << 20  # of a pass over a mapped store, after which its pages leave the process's memory


class TrajectoryStore:
    """Raw float32 steps of many datasets: per body one flat `states` (N, S) and `actions` (N, D), and who owns a row.

    Made by `from_sources` (in memory), `build` (on disk) or `open`. On disk it is a folder of safetensors files (the
    arrays), a parquet table of episodes and a JSON index; no timestamps and no frames. A mapped store costs memory
    only where it is touched, and `release` gives that back.

    Attributes:
        sources: the datasets, in the order given; `bodies`: names of their embodiments, in order of first appearance.
        states, actions: one array a body. episodes: see `EpisodeTable`. tasks: the distinct instructions.
    """

    def __init__(
        self,
        sources: Sequence[StoredSource],
        tasks: Sequence[str],
        episodes: EpisodeTable,
        states: Sequence[NDArray[np.float32]],
        actions: Sequence[NDArray[np.float32]],
    ) -> None:
        self.sources, self.tasks, self.episodes = list(sources), list(tasks), episodes
        self.states, self.actions = list(states), list(actions)
        self.bodies = list(dict.fromkeys(source.embodiment.name for source in sources))
        self.folder: Path | None = None
        self._mapped: list[MappedRows] = []

    @classmethod
    def from_sources(cls, sources: Iterable[TrajectorySource]) -> TrajectoryStore:
        """A store in memory. Raises ValueError when two sources of one embodiment, or a trajectory, differ in dims."""
        collector = _Collector(lambda body, label, width: _MemoryRows(width))
        for source in sources:
            collector.add(source)
        states, actions = ([rows.values() for rows in collector.rows[label]] for label in LABELS)
        return cls(*collector.index(), states, actions)

    @classmethod
    def build(cls, sources: Iterable[TrajectorySource], folder: str | Path) -> TrajectoryStore:
        """Writes `sources` to the new `folder` and opens it; one source after the other is held in memory.

        The folder appears when it is complete.

        Raises:
            FileExistsError: `folder` exists.
            ValueError: as `from_sources`.
        """
        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(f"{folder} exists: open it with TrajectoryStore.open, or remove it to build it again")
        staged = StagedFolder(folder, overwrite=False)
        staged.path.mkdir(parents=True)
        try:
            with ExitStack() as stack:

                def new_rows(body: int, label: str, width: int) -> RowWriter:
                    return stack.enter_context(RowWriter(staged.path / _rows_file(body, label), label, width))

                collector = _Collector(new_rows)
                for source in sources:
                    collector.add(source)
            write_index(staged.path, *collector.index())
            staged.publish()
        finally:
            staged.remove()
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path, fingerprints: Mapping[str, str] | None = None) -> TrajectoryStore:
        """The store in `folder`, memory-mapped.

        Args:
            fingerprints: of datasets as they are now, by root: a store that was built of others is refused.

        Raises:
            FileNotFoundError: there is no store, or one of its files is missing.
            ValueError: a file is damaged, of another version, or built from data that have changed; names it.
        """
        folder = Path(folder)
        sources, tasks, episodes = read_index(folder)
        for source in sources:
            now = (fingerprints or {}).get(str(source.root), source.fingerprint)
            if now != source.fingerprint:
                raise ValueError(
                    f"{folder / INDEX_FILE}: {source.root} has changed since the store was built (fingerprint "
                    f"{source.fingerprint[:12]}, now {now[:12]}): remove {folder} and build it again"
                )
        store = cls(sources, tasks, episodes, [], [])
        store.folder = folder
        store._map()
        return store

    def __len__(self) -> int:
        """The number of episodes."""
        return len(self.episodes)

    @property
    def num_steps(self) -> int:
        return int(self.episodes.length.sum())

    def select(self, episodes: NDArray[Any]) -> TrajectoryStore:
        """A store of the chosen episodes (positions in ascending order, or a mask) that shares this one's arrays."""
        chosen = self.episodes.select(episodes)
        counts = np.bincount(chosen.source, minlength=len(self.sources)).tolist()
        sources = [replace(source, episodes=count) for source, count in zip(self.sources, counts, strict=True)]
        store = TrajectoryStore(sources, self.tasks, chosen, self.states, self.actions)
        store.folder, store._mapped = self.folder, self._mapped
        return store

    def split(self, holdout: float, seed: int = 0) -> tuple[TrajectoryStore, TrajectoryStore]:
        """Stores without, and with only, a share `holdout` of every source's episodes; as `split_episodes` does."""
        held = [held_out(source.episodes, holdout, seed) for source in self.sources]
        mask = np.concatenate(held)
        return self.select(~mask), self.select(mask)

    def steps(self, source: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
        """`(states, actions)` of the episodes of the source at position `source`, one after the other."""
        touched = 0
        for episode in np.flatnonzero(self.episodes.source == source):
            body, start = self.episodes.body[episode], self.episodes.start[episode]
            rows = slice(start, start + self.episodes.length[episode])
            yield self.states[body][rows], self.actions[body][rows]
            touched += rows.stop - rows.start
            if touched > RELEASE_STEPS:
                self.release()
                touched = 0
        self.release()

    def release(self) -> None:
        """Lets go of the pages of a mapped store that were touched; in memory there is nothing to let go of."""
        for rows in self._mapped:
            rows.release()

    def __getstate__(self) -> dict[str, Any]:
        """Of a mapped store only its place travels to another process, not its steps."""
        state = self.__dict__.copy()
        return state if self.folder is None else {**state, "states": [], "actions": [], "_mapped": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        if self.folder is not None:
            self._map()

    def _map(self) -> None:
        assert self.folder is not None
        for label, arrays in zip(LABELS, (self.states, self.actions), strict=True):
            for body in range(len(self.bodies)):
                rows = MappedRows(self.folder / _rows_file(body, label), label)
                own = self.episodes.body == body
                needed = int((self.episodes.start[own] + self.episodes.length[own]).max(initial=0))
                if len(rows.values) < needed:
                    raise ValueError(
                        f"{self.folder / _rows_file(body, label)} has {len(rows.values)} rows, {EPISODES_FILE} speaks "
                        f"of {needed}: the two do not belong together, build the store again"
                    )
                self._mapped.append(rows)
                arrays.append(rows.values)


def held_out(count: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Which of `count` episodes are held out: about a `share` in [0, 1), drawn by `seed`; at least one is not."""
    held = np.zeros(count, dtype=bool)
    held[np.random.default_rng(seed).permutation(count)[: min(round(share * count), count - 1)]] = True
    return held


class _MemoryRows:
    def __init__(self, width: int) -> None:
        self.rows = 0
        self._parts = [np.zeros((0, width), dtype=np.float32)]

    def append(self, rows: NDArray[np.float32]) -> None:
        self._parts.append(rows)
        self.rows += len(rows)

    def values(self) -> NDArray[np.float32]:
        return np.concatenate(self._parts)


class _Collector:
    """Takes sources in; their steps go where `new_rows(body, label, width)` says, what owns them is kept."""

    def __init__(self, new_rows: Callable[[int, str, int], Any]) -> None:
        self.rows: dict[str, list[Any]] = {label: [] for label in LABELS}
        self._new_rows = new_rows
        self._sources: list[StoredSource] = []
        self._tasks: dict[str, int] = {}
        self._episodes = array("q")
        self._bodies: dict[str, tuple[int, Embodiment]] = {}  # position and first description by name

    def add(self, source: TrajectorySource) -> None:
        body = self._body(source)
        states, actions = (self.rows[label][body] for label in LABELS)
        for trajectory in source.trajectories:
            _require_dims(trajectory, source.embodiment)
            task = self._tasks.setdefault(trajectory.task, len(self._tasks))
            self._episodes.extend(
                (len(self._sources), body, actions.rows, len(trajectory), trajectory.episode_index, task)
            )
            states.append(trajectory.states)
            actions.append(trajectory.actions)
        self._sources.append(StoredSource(source.root, source.fingerprint, source.embodiment, len(source)))

    def index(self) -> tuple[list[StoredSource], list[str], EpisodeTable]:
        return self._sources, list(self._tasks), EpisodeTable.from_rows(self._episodes)

    def _body(self, source: TrajectorySource) -> int:
        theirs = source.embodiment
        dims = {"states": theirs.state_dim, "actions": theirs.action_dim}
        if theirs.name not in self._bodies:
            self._bodies[theirs.name] = len(self._bodies), theirs
            for label in LABELS:
                self.rows[label].append(self._new_rows(len(self._bodies) - 1, label, dims[label]))
        body, known = self._bodies[theirs.name]
        if (known.state_dim, known.action_dim) != (theirs.state_dim, theirs.action_dim):
            raise ValueError(
                f"{source.root}: embodiment {theirs.name!r} has {theirs.state_dim} state and {theirs.action_dim} "
                f"action dims, another source has {known.state_dim} and {known.action_dim}: give one of them another "
                "name"
            )
        return body


def _require_dims(trajectory: Trajectory, embodiment: Embodiment) -> None:
    for label, values, dim in (
        ("state", trajectory.states, embodiment.state_dim),
        ("action", trajectory.actions, embodiment.action_dim),
    ):
        if values.shape[1] != dim:
            raise ValueError(
                f"{trajectory.source}: episode {trajectory.episode_index} has {values.shape[1]} {label} dims, "
                f"embodiment {embodiment.name!r} has {dim}: pass the embodiment that recorded it"
            )


def _rows_file(body: int, label: str) -> str:
    return f"body-{body:03d}-{label}.safetensors"


__all__ = ["TrajectoryStore", "held_out"]
