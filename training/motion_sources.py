"""Where a prior's motion comes from: datasets in a memory-mapped store, or files that are streamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from ..configuration.embodiment import Embodiment
from .action_prior_arguments import ActionPriorTrainingArguments
from .data.hub_files import HubDataset
from .data.lerobot_reader import described_embodiment
from .data.parquet_streams import StreamedSource
from .data.readers import load_trajectories
from .data.store_index import INDEX_FILE
from .data.streaming import StreamingTrajectoryDataset, fit_streaming
from .data.trajectory import TrajectorySource
from .data.trajectory_dataset import TrajectoryDataset, fit_embodiments
from .data.trajectory_store import TrajectoryStore, held_out
from .run_options import STEPS_FOLDER, PriorOptions, split_weight
from .runs import source_weights

MEASURED_FILES = 8  # of a stream, from which a report takes its windows


class Motion(Protocol):
    """Datasets of motion, from which bodies are fitted and windows are cut."""

    names: list[str]

    def fit(self, chunk_size: int) -> list[Embodiment]:
        """The bodies of what is trained on, with statistics, in order of first appearance."""
        ...

    def windows(self, embodiments: list[Embodiment], chunk_size: int) -> Dataset:
        """What is trained on."""
        ...

    def measured(
        self, embodiments: list[Embodiment], chunk_size: int
    ) -> tuple[TrajectoryDataset | None, TrajectoryDataset]:
        """Windows that were held out (None: none were), and some that were not, to measure a prior with."""
        ...

    def close(self) -> None:
        """Removes what was prepared for the run."""
        ...


class StoredMotion:
    """The run's datasets in a memory-mapped store in its folder.

    Of several processes one reads the datasets. A run that is resumed goes on with what it began with, whatever has
    happened to the datasets since. Raises ValueError when it is resumed with another number of datasets.
    """

    def __init__(self, options: PriorOptions, arguments: ActionPriorTrainingArguments) -> None:
        self._folder = options.output_dir / STEPS_FOLDER
        with arguments.main_process_first(local=False, desc="reading the datasets"):
            if arguments.process_index == 0 and not (options.resume and (self._folder / INDEX_FILE).is_file()):
                self._build(options)
        store = TrajectoryStore.open(self._folder)
        if len(store.sources) != len(options.datasets):
            raise ValueError(
                f"--resume: the run in {options.output_dir} was started with {len(store.sources)} datasets, now there "
                f"are {len(options.datasets)}: resume it with the same, or start another"
            )
        self.names = [str(source.root) for source in store.sources]
        self._weights = source_weights(options.datasets)
        self._training, self._held_out = store.split(options.holdout, options.seed)

    def fit(self, chunk_size: int) -> list[Embodiment]:
        return fit_embodiments(self._training, chunk_size)

    def windows(self, embodiments: list[Embodiment], chunk_size: int) -> TrajectoryDataset:
        return TrajectoryDataset(self._training, embodiments, chunk_size, weights=self._weights)

    def measured(
        self, embodiments: list[Embodiment], chunk_size: int
    ) -> tuple[TrajectoryDataset | None, TrajectoryDataset]:
        held = TrajectoryDataset(self._held_out, embodiments, chunk_size) if len(self._held_out) else None
        return held, TrajectoryDataset(self._training, embodiments, chunk_size)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _build(self, options: PriorOptions) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # of a run that was stopped before its first checkpoint
        options.output_dir.mkdir(parents=True, exist_ok=True)
        try:
            TrajectoryStore.build(_read(options), self._folder)
        except BaseException:
            with suppress(OSError):  # it is not empty: this run did not make it
                options.output_dir.rmdir()
            raise


class StreamedMotion:
    """LeRobot datasets whose parquet files are read as they are needed, a share of the files held out."""

    def __init__(self, options: PriorOptions, arguments: ActionPriorTrainingArguments) -> None:
        sources = [_streamed(dataset, options) for dataset in options.datasets]
        self._sources: list[StreamedSource] = []
        self._held_out: list[StreamedSource] = []
        for source in sources:
            held = held_out(len(source.files), options.holdout, options.seed)
            for part, wanted in ((self._sources, False), (self._held_out, True)):
                if files := [file for file, out in zip(source.files, held.tolist(), strict=True) if out is wanted]:
                    part.append(replace(source, files=files))
        _require_met(options, {source.embodiment.name for source in sources})
        self.names = [source.root for source in sources]
        self._batch_size, self._seed = arguments.train_batch_size, options.seed

    def fit(self, chunk_size: int) -> list[Embodiment]:
        return fit_streaming(self._sources, chunk_size, seed=self._seed)

    def windows(self, embodiments: list[Embodiment], chunk_size: int) -> StreamingTrajectoryDataset:
        return StreamingTrajectoryDataset(self._sources, embodiments, chunk_size, self._batch_size, seed=self._seed)

    def measured(
        self, embodiments: list[Embodiment], chunk_size: int
    ) -> tuple[TrajectoryDataset | None, TrajectoryDataset]:
        held = self._some(self._held_out, embodiments, chunk_size) if self._held_out else None
        return held, self._some(self._sources, embodiments, chunk_size)

    def close(self) -> None:
        pass

    def _some(self, sources: list[StreamedSource], embodiments: list[Embodiment], chunk_size: int) -> TrajectoryDataset:
        random = np.random.default_rng(self._seed)
        parts = []
        for source in sources:
            chosen = np.sort(random.permutation(len(source.files))[:MEASURED_FILES]).tolist()
            parts.append(source.holding([episode for number in chosen for episode in source.episodes(number)]))
        return TrajectoryDataset(parts, embodiments, chunk_size)


def _read(options: PriorOptions) -> Iterator[TrajectorySource]:
    """The datasets, one after the other, their bodies with the fields that the run gives them."""
    met = set()
    for dataset in options.datasets:
        source = load_trajectories(split_weight(dataset)[0])
        met.add(source.embodiment.name)
        yield replace(source, embodiment=_changed(source.embodiment, options))
    _require_met(options, met)


def _streamed(dataset: str, options: PriorOptions) -> StreamedSource:
    folder = Path(dataset) if Path(dataset).is_dir() else HubDataset(dataset).fetch(["meta/*"])
    return StreamedSource.from_lerobot(dataset, _changed(described_embodiment(folder), options))


def _changed(body: Embodiment, options: PriorOptions) -> Embodiment:
    changes = (options.embodiments or {}).get(body.name)
    if changes is None:
        return body
    return Embodiment.from_dict({**body.to_dict(), "learned_kinds": [], "reference_dims": [], **changes})


def _require_met(options: PriorOptions, met: set[str]) -> None:
    if unmet := sorted(set(options.embodiments or {}) - met):
        raise ValueError(f"embodiments.{unmet[0]}: no dataset is of this body, they are of {', '.join(sorted(met))}")


__all__ = ["Motion", "StoredMotion", "StreamedMotion"]
