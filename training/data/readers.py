"""The one entry to recorded motion: `load_trajectories` reads every format, from a folder, a file or the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...configuration.embodiment import Embodiment
from ...configuration.embodiment_registry import load_embodiment
from ...hub_cards.checkpoints import is_hub_id, split_revision
from .array_reader import read_arrays
from .array_recordings import OPENERS
from .column_mapping import MAPPING_FILE
from .hub_files import HubDataset
from .lerobot_layout import INFO_FILE
from .lerobot_reader import read_lerobot
from .trajectory import TrajectorySource


def load_trajectories(
    path: str | Path,
    *,
    embodiment: Embodiment | str | None = None,
    episodes: Sequence[int] | None = None,
    frames: bool = False,
    mapping: str | Path | Mapping[str, Any] | None = None,
) -> TrajectorySource:
    """Reads a dataset: LeRobot v2.0, v2.1 or v3.0; HDF5 (robomimic, ALOHA or mapped), NPZ or parquet files.

    Args:
        path: a dataset's folder, a single file (HDF5, NPZ, parquet), or the Hub id of a dataset: `owner/name`, or
            `owner/name@revision` for a branch, tag or commit. From the Hub come only metadata and parquet files, and
            those of the chosen episodes; their videos with `frames`. Of HDF5 and NPZ datasets all files come. Offline,
            and for what lies here, the Hub is never called.
        embodiment: the body that made the data, or its name in the registry. Default: what the dataset (our writer
            leaves `meta/embodiment.json`) or the mapping says, otherwise inferred: name, dimension names, control rate,
            cameras; no statistics.
        episodes: episode indices to read, in this order. Default: all. LeRobot's own, otherwise counted from 0.
        frames: whether trajectories get a frame reader. Without it no image or video is opened; with it they are
            opened when a frame is read, so that a missing video is an error only then.
        mapping: which column of HDF5, NPZ or parquet files is what, see `ColumnMapping`: a dict or a YAML file.
            Default: `priorvla.yaml` beside the data, if there is one, and what the files' layout tells.

    Raises:
        FileNotFoundError: there is no such dataset, or one of its files is missing.
        ImportError: HDF5 files, and h5py is not installed.
        ValueError: an unsupported version or unknown layout, a damaged or pickled file, a missing column, a value that
            is missing or not finite, lengths, dims or rates that disagree, an unknown control rate, an episode without
            steps, an unknown episode, a mapping that makes no sense; names file, key and value.
    """
    if isinstance(embodiment, str):
        embodiment = load_embodiment(embodiment)
    folder, hub = Path(path), None
    if not folder.exists():
        if not is_hub_id(split_revision(str(path))[0]):
            raise FileNotFoundError(
                f"{folder} does not exist: pass a dataset's folder, file or Hub id (owner/name or owner/name@revision)"
            )
        hub = HubDataset(str(path))
        folder = hub.fetch(["meta/*", MAPPING_FILE])
    if (folder / INFO_FILE).is_file():
        if mapping is not None or (folder / MAPPING_FILE).is_file():
            raise ValueError(
                f"{folder} is a LeRobot dataset, whose {INFO_FILE} names the columns: leave out mapping= and "
                f"{MAPPING_FILE}"
            )
        fetch = None if hub is None else hub.fetch
        return read_lerobot(folder, embodiment=embodiment, episodes=episodes, frames=frames, fetch=fetch)
    if hub is not None:
        folder = hub.fetch([MAPPING_FILE, *(f"*{suffix}" for suffix in OPENERS)])
    return read_arrays(folder, embodiment=embodiment, episodes=episodes, frames=frames, mapping=mapping)


__all__ = ["load_trajectories"]
