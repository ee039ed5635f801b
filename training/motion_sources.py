"""Where a prior's motion comes from: datasets in a memory-mapped store, or files that are streamed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from torch.utils.data import Dataset

from ..configuration.compatibility import first_difference
from ..configuration.embodiment import EMBODIMENTS_FILE, Embodiment, load_embodiments, save_embodiments
from ..configuration.embodiment_registry import load_embodiment
from ..hub_cards.checkpoints import split_revision
from .action_prior_arguments import ActionPriorTrainingArguments
from .data.hub_files import HubDataset, repository_name
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

MEASURED_FILES = 8  # of each body in a stream, from which a report takes its windows


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
    happened to the datasets since. Raises ValueError when it is resumed with others, or in another order.
    """

    def __init__(self, options: PriorOptions, arguments: ActionPriorTrainingArguments) -> None:
        self._folder = options.output_dir / STEPS_FOLDER
        with arguments.main_process_first(local=False, desc="reading the datasets"):
            if arguments.process_index == 0 and not (options.resume and (self._folder / INDEX_FILE).is_file()):
                self._build(options)
        store = TrajectoryStore.open(self._folder)
        self.names = [split_weight(dataset)[0] for dataset in options.datasets]
        _require_same_datasets(store, options)
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
        for folder in options.output_dir.glob(f".{STEPS_FOLDER}.partial-*"):  # of one that was killed while it read
            shutil.rmtree(folder, ignore_errors=True)
        try:
            TrajectoryStore.build(_read(options), self._folder)
        except BaseException:
            with suppress(OSError):  # it is not empty: this run did not make it
                options.output_dir.rmdir()
            raise


class StreamedMotion:
    """LeRobot datasets whose parquet files are read as they are needed, a share of the files held out.

    Of several processes one fits the bodies, and a run that is resumed keeps those that it began with.
    """

    def __init__(self, options: PriorOptions, arguments: ActionPriorTrainingArguments) -> None:
        bodies = [_described_by_dataset(dataset) for dataset in options.datasets]
        _require_met(options, {body.name for body in bodies})
        sources = [
            StreamedSource.from_lerobot(dataset, _described_by_run(body, dataset, options))
            for dataset, body in zip(options.datasets, bodies, strict=True)
        ]
        self._sources: list[StreamedSource] = []
        self._held_out: list[StreamedSource] = []
        for source in sources:
            held = held_out(len(source.files), options.holdout, options.seed)
            for part, wanted in ((self._sources, False), (self._held_out, True)):
                if files := [file for file, out in zip(source.files, held.tolist(), strict=True) if out is wanted]:
                    part.append(replace(source, files=files))
        self.names = [split_weight(dataset)[0] for dataset in options.datasets]
        self._arguments, self._seed, self._resumed = arguments, options.seed, options.resume
        self._folder = options.output_dir / STEPS_FOLDER

    def fit(self, chunk_size: int) -> list[Embodiment]:
        file = self._folder / EMBODIMENTS_FILE
        with self._arguments.main_process_first(local=False, desc="fitting statistics"):
            if self._arguments.process_index == 0 and not (self._resumed and file.is_file()):
                bodies = fit_streaming(self._sources, chunk_size, seed=self._seed)
                self._folder.mkdir(parents=True, exist_ok=True)
                save_embodiments(bodies, self._folder)
        return load_embodiments(file)

    def windows(self, embodiments: list[Embodiment], chunk_size: int) -> StreamingTrajectoryDataset:
        return StreamingTrajectoryDataset(
            self._sources, embodiments, chunk_size, self._arguments.train_batch_size, seed=self._seed
        )

    def measured(
        self, embodiments: list[Embodiment], chunk_size: int
    ) -> tuple[TrajectoryDataset | None, TrajectoryDataset]:
        held = self._some(self._held_out, embodiments, chunk_size) if self._held_out else None
        return held, self._some(self._sources, embodiments, chunk_size)

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _some(self, sources: list[StreamedSource], embodiments: list[Embodiment], chunk_size: int) -> TrajectoryDataset:
        random = np.random.default_rng(self._seed)
        files: dict[str, list[tuple[StreamedSource, int]]] = {}
        for source in sources:
            files.setdefault(source.embodiment.name, []).extend((source, number) for number in range(len(source.files)))
        parts = []
        for own in files.values():
            for place in np.sort(random.permutation(len(own))[:MEASURED_FILES]).tolist():
                source, number = own[place]
                parts.append(source.holding(list(source.episodes(number))))
        return TrajectoryDataset(parts, embodiments, chunk_size)


def _read(options: PriorOptions) -> Iterator[TrajectorySource]:
    """The datasets, one after the other, their bodies as the run describes them."""
    met = set()
    for dataset in options.datasets:
        path = split_weight(dataset)[0]
        source = load_trajectories(path)
        met.add(source.embodiment.name)
        yield replace(source, embodiment=_described_by_run(source.embodiment, path, options))
    _require_met(options, met)


def _described_by_dataset(dataset: str) -> Embodiment:
    folder = Path(dataset) if Path(dataset).is_dir() else HubDataset(dataset).fetch(["meta/*"])
    return described_embodiment(folder)


def _described_by_run(body: Embodiment, dataset: str, options: PriorOptions) -> Embodiment:
    """The body of a dataset, with what the run says of this dataset, or else of the body."""
    given = options.embodiments or {}
    key = dataset if dataset in given else body.name
    if key not in given:
        return body
    changes = given[key]
    try:
        if isinstance(changes, Mapping):
            return body.changed(changes)
        known = replace(load_embodiment(changes), cameras=body.cameras)
        if (difference := first_difference(known, body, ("action_dim", "state_dim", "control_rate"))) is not None:
            field, theirs, ours = difference
            raise ValueError(
                f"{changes} has {field}={theirs}, the data have {ours}: give the fields that are right, or a copy of it"
            )
        return known
    except (TypeError, ValueError) as error:
        raise ValueError(f"embodiments.{key}: {error}") from error


def _require_met(options: PriorOptions, met: set[str]) -> None:
    datasets = {split_weight(dataset)[0] for dataset in options.datasets}
    if unmet := sorted(set(options.embodiments or {}) - met - datasets):
        raise ValueError(f"embodiments.{unmet[0]}: no dataset is of this body, they are of {', '.join(sorted(met))}")


def _require_same_datasets(store: TrajectoryStore, options: PriorOptions) -> None:
    """By name, as folders may have moved since: weights and held-out episodes go by their order."""
    then = [repository_name(source.root) or source.root.resolve().name for source in store.sources]
    now = [Path(split_revision(split_weight(dataset)[0])[0]).resolve().name for dataset in options.datasets]
    if then != now:
        raise ValueError(
            f"--resume: the run in {options.output_dir} was started with {len(then)} datasets, now there are "
            f"{len(now)} (then {', '.join(then)}; now {', '.join(now)}): resume it with the same, in the same order, "
            "or start another"
        )


__all__ = ["Motion", "StoredMotion", "StreamedMotion"]
