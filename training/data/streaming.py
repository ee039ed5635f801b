"""Windows from parquet files that are never all here: streamed, dealt out to ranks and workers, resumable exactly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ...configuration.embodiment import Embodiment
from .embodiment_fitting import checkpoint_id, fit_embodiments
from .parquet_streams import StreamedSource
from .trajectory import Trajectory, TrajectorySource
from .trajectory_dataset import TrajectoryDataset

Batch = dict[str, Tensor]
Position = dict[str, Any]  # see START
START: Position = {"epoch": 0, "pool": 0, "next_file": 0, "open": [], "drawn": 0}
POSITION_FILE = "stream-{rank}.json"


class StreamingTrajectoryDataset(IterableDataset):
    """Batches of windows from files that are read one after the other, gathered as `TrajectoryDataset` does.

    Files are shards: each epoch they are shuffled and dealt out to `world_size` x workers readers, and no two readers
    share one. A reader keeps `open_files` files open, takes an episode from each in turn until it has `pool_windows`
    windows, and draws from that pool without replacement until it is empty; then it fills the next. So a position in
    the stream is a few numbers (which pool, where its files were, how much of it was drawn), no row is lost or repeated
    at a resume, and a resume reads one pool again. A shuffle buffer, whose content depends on the whole past of the
    stream, could not be resumed like that. Our choice.

    Iterating gives `(batch, worker, position)`; what trains takes a `StreamingLoader`, which gives batches.

    Args:
        sources: datasets as files.
        embodiments: the checkpoint's embodiments with statistics, in the order of their ids; see `fit_streaming`.
        chunk_size, batch_size: steps in a window, windows in a batch; a batch may span two pools.
        seed: of the order.
        epochs: passes over the files; None for no end, so that no rank waits for another that had more windows.
        pool_windows, open_files: of one reader; the pool is its memory.
        rank, world_size: of this process among those that share the files. Default: torch.distributed's, or 0 of 1.

    Raises:
        ValueError: a source's body is not among `embodiments` or described differently, or there are fewer files than
            readers.
    """

    def __init__(
        self,
        sources: Sequence[StreamedSource],
        embodiments: Sequence[Embodiment],
        chunk_size: int,
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = None,
        pool_windows: int = 1 << 16,
        open_files: int = 8,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        for source in sources:
            checkpoint_id(source, embodiments)
        self.sources, self.embodiments = list(sources), list(embodiments)
        self.chunk_size, self.batch_size, self.seed, self.epochs = chunk_size, batch_size, seed, epochs
        self.pool_windows, self.open_files = pool_windows, open_files
        here = torch.distributed if torch.distributed.is_available() and torch.distributed.is_initialized() else None
        self.rank = rank if rank is not None else here.get_rank() if here else 0
        self.world_size = world_size if world_size is not None else here.get_world_size() if here else 1
        self.files = [(source, file) for source in self.sources for file in range(len(source.files))]
        self.starts: list[Position] | None = None  # where each worker begins, and whose batch comes first:
        self.first_worker = 0  # a loader that resumes sets them
        self.require_files(1)

    def require_files(self, workers: int) -> None:
        """Raises ValueError when each of `workers` readers of each rank cannot have a file of its own."""
        needed = self.world_size * workers
        if len(self.files) < needed:
            raise ValueError(
                f"{len(self.files)} files cannot be shared by {self.world_size} ranks x {workers} workers: use fewer "
                f"workers, or split the data into at least {needed} files"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What a position is only valid with. Folders and files count by their names, and on the Hub by the commit."""
        names = ("chunk_size", "batch_size", "seed", "pool_windows", "open_files", "rank", "world_size")
        files = [file for source in self.sources for file in source.files]
        files = [file if file.startswith("hf://") else Path(file).name for file in files]
        return {
            **{name: getattr(self, name) for name in names},
            "datasets": [
                Path(source.root).name if Path(source.root).exists() else source.root for source in self.sources
            ],
            "files": hashlib.sha256("\n".join(files).encode()).hexdigest()[:12],
        }

    def __iter__(self) -> Iterator[tuple[Batch, int, Position]]:
        info = get_worker_info()
        workers = 1 if info is None else info.num_workers
        self.require_files(workers)
        worker = ((0 if info is None else info.id) + self.first_worker) % workers
        start = START if self.starts is None else self.starts[worker]
        held: list[Batch] = []
        for part, position in self._parts(self.rank * workers + worker, self.world_size * workers, start):
            held.append(part)
            if sum(len(batch["actions"]) for batch in held) == self.batch_size:
                yield _joined(held), worker, position
                held = []
        if held:
            yield _joined(held), worker, position

    def _parts(self, reader: int, readers: int, start: Position) -> Iterator[tuple[Batch, Position]]:
        """Batches, each with the position after it; where a pool ends in the middle of one, it comes in parts."""
        lacking = self.batch_size
        for position, windows in self._pools(reader, readers, start):
            random = np.random.default_rng([self.seed, position["epoch"], reader, position["pool"]])
            order, drawn = random.permutation(len(windows)).tolist(), position["drawn"]
            while drawn < len(order):
                part = order[drawn : drawn + lacking]
                drawn += len(part)
                lacking = lacking - len(part) or self.batch_size
                yield windows.__getitems__(part), {**position, "drawn": drawn}

    def _pools(self, reader: int, readers: int, start: Position) -> Iterator[tuple[Position, TrajectoryDataset]]:
        """Pools from `start` on, each with the position at which it was filled; the first keeps what was drawn."""
        position = start
        while self.epochs is None or position["epoch"] < self.epochs:
            order = np.random.default_rng([self.seed, position["epoch"]]).permutation(len(self.files))
            reading = _OpenFiles(self, order[reader::readers].tolist(), position)
            while pool := reading.fill():
                yield position, TrajectoryDataset(pool, self.embodiments, self.chunk_size)
                position = {**position, **reading.place(), "pool": position["pool"] + 1, "drawn": 0}
            if not position["next_file"]:
                raise ValueError(f"reader {reader} of {readers} found no episode in its files: leave empty files out")
            position = {**START, "epoch": position["epoch"] + 1}


class _OpenFiles:
    """A reader's files, of which some are open and give an episode in turn."""

    def __init__(self, dataset: StreamingTrajectoryDataset, files: Sequence[int], position: Position) -> None:
        self._dataset, self._files, self._next = dataset, files, position["next_file"]
        self._open = [self._reading(file, taken) for file, taken in position["open"]]

    def place(self) -> Position:
        """How many files were opened so far, and of each that still is, how many episodes were taken."""
        return {"next_file": self._next, "open": [[file, taken] for file, taken, _ in self._open]}

    def fill(self) -> list[TrajectorySource]:
        """Episodes of at least a pool's windows, of fewer where the files end, of none after that."""
        pool: dict[int, list[Trajectory]] = {}
        steps = 0
        while steps < self._dataset.pool_windows:
            while len(self._open) < self._dataset.open_files and self._next < len(self._files):
                self._open.append(self._reading(self._files[self._next], 0))
                self._next += 1
            if not self._open:
                break
            file, taken, episodes = self._open.pop(0)
            if (episode := next(episodes, None)) is not None:
                self._open.append((file, taken + 1, episodes))
                pool.setdefault(file, []).append(episode)
                steps += len(episode)
        return [self._dataset.files[file][0].holding(episodes) for file, episodes in pool.items()]

    def _reading(self, file: int, taken: int) -> tuple[int, int, Iterator[Trajectory]]:
        source, number = self._dataset.files[file]
        return file, taken, islice(source.episodes(number), taken, None)


class StreamingLoader:
    """Batches of a stream in `num_workers` processes, in an order that does not depend on their speed.

    `state_dict` is the position after the last batch that was given out, however far the workers have read ahead; a
    loader with the same settings that loads it goes on with the next batch. A Trainer must use it as it is:
    accelerate's sharding or dispatching of batches would share the rows out a second time. `arguments` are further
    ones of `DataLoader`.
    """

    def __init__(self, dataset: StreamingTrajectoryDataset, num_workers: int = 0, **arguments: Any) -> None:
        dataset.require_files(max(1, num_workers))
        self.dataset, self.num_workers = dataset, num_workers
        self._arguments = arguments
        self._positions = [START] * max(1, num_workers)
        self._next_worker = 0

    def __iter__(self) -> Iterator[Batch]:
        self.dataset.starts, self.dataset.first_worker = list(self._positions), self._next_worker
        loader = DataLoader(self.dataset, batch_size=None, num_workers=self.num_workers, **self._arguments)
        for batch, worker, position in loader:
            self._positions[worker] = position
            self._next_worker = (worker + 1) % len(self._positions)
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """A few numbers for each worker; JSON."""
        settings = {**self.dataset.settings, "workers": len(self._positions)}
        return {"settings": settings, "next_worker": self._next_worker, "positions": list(self._positions)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError, naming the setting, when the state is of a stream in another order."""
        for name, value in self.state_dict()["settings"].items():
            if (theirs := state["settings"].get(name)) != value:
                raise ValueError(
                    f"the stream had {name}={theirs} when its position was saved and has {name}={value} now, so that "
                    "its rows come in another order: resume with the same settings (datasets on the Hub as "
                    "owner/name@revision), or start again"
                )
        self._positions, self._next_worker = list(state["positions"]), state["next_worker"]

    def save(self, folder: str | Path) -> None:
        """Writes this rank's position into a checkpoint's `folder`."""
        self._file(folder).write_text(json.dumps(self.state_dict()) + "\n", encoding="utf-8")

    def resume(self, folder: str | Path) -> None:
        """Goes on from the position in a checkpoint's `folder`. Raises FileNotFoundError when it has none."""
        file = self._file(folder)
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing: this checkpoint was not trained on a stream by this rank")
        self.load_state_dict(json.loads(file.read_text(encoding="utf-8")))

    def _file(self, folder: str | Path) -> Path:
        return Path(folder) / POSITION_FILE.format(rank=self.dataset.rank)


def fit_streaming(
    sources: Sequence[StreamedSource], chunk_size: int | None = None, *, max_files: int = 1000, seed: int = 0
) -> list[Embodiment]:
    """`fit_embodiments` over at most `max_files` files of each source, drawn by `seed`; one file is held at a time."""
    random = np.random.default_rng(seed)

    def files(source: StreamedSource) -> Iterator[TrajectorySource]:
        for number in np.sort(random.permutation(len(source.files))[:max_files]).tolist():
            yield source.holding(list(source.episodes(number)))

    return fit_embodiments(chain.from_iterable(map(files, sources)), chunk_size)


def _joined(parts: list[Batch]) -> Batch:
    return parts[0] if len(parts) == 1 else {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


__all__ = ["StreamingLoader", "StreamingTrajectoryDataset", "fit_streaming"]
