"""Column mappings: the small YAML that says which column of somebody's files is the action, the state and so on.

action: action                                # or a list of columns, put side by side
state: [observations/qpos, observations/qvel]
images: {front: observations/images/front}    # column by camera name
rate: 50                                      # Hz; or `timestamp:`, a column of seconds
task: Pick up the cup.                        # one sentence for all; or `task_column:`, a column of sentences
embodiment: franka                            # of the registry; or its fields, the rest is inferred from the data
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...configuration.recipe import load_recipe, require_known

MAPPING_FILE = "priorvla.yaml"


@dataclass(frozen=True)
class ColumnMapping:
    """Which columns hold what. None: left open, for the file's layout to tell.

    Args:
        action, state: columns (T, k), or (T,), put side by side; an empty state is a body without one.
        images: column of images by camera name.
        episode: what tells the episodes of one file apart. HDF5: a pattern of groups (`data/demo_*`), in which the
            columns are then looked up; parquet: a column; NPZ: an array of the steps at which episodes end. Without it
            a file is one episode.
        timestamp: a column of seconds.
        rate: control steps a second, Hz.
        task: the instruction of all episodes, a sentence.
        task_column: a column of sentences, of which an episode takes its first.
        embodiment: the name of a body of the registry, or fields of an `Embodiment`, where the rest is inferred.

    Raises:
        ValueError: a rate that is not positive, an empty action, both a task and a task column.
    """

    action: tuple[str, ...] | None = None
    state: tuple[str, ...] | None = None
    images: Mapping[str, str] | None = None
    episode: str | None = None
    timestamp: str | None = None
    rate: float | None = None
    task: str | None = None
    task_column: str | None = None
    embodiment: str | Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.action == ():
            raise ValueError("action names no column: a trajectory needs actions")
        if self.rate is not None and not self.rate > 0:
            raise ValueError(f"rate must be positive (control steps a second, Hz), got {self.rate}")
        if self.task is not None and self.task_column is not None:
            raise ValueError(f"task {self.task!r} and task_column {self.task_column!r} are both given: give one")

    def completed(self, **defaults: Any) -> ColumnMapping:
        """A copy in which `defaults` stand for what was left open."""
        if self.task is not None or self.task_column is not None:
            defaults = {key: value for key, value in defaults.items() if key not in ("task", "task_column")}
        return replace(self, **{key: value for key, value in defaults.items() if getattr(self, key) is None})

    @property
    def columns(self) -> list[str]:
        """The columns of every step's numbers: actions first, then states."""
        return [*(self.action or ()), *(self.state or ())]


def read_mapping(mapping: str | Path | Mapping[str, Any] | None, folder: Path) -> ColumnMapping:
    """The mapping given as a dict or a YAML file, otherwise that of `priorvla.yaml` in `folder`, otherwise an open one.

    Raises FileNotFoundError when the file is missing, ValueError naming file, key and value when it makes no sense.
    """
    if mapping is None:
        file = folder / MAPPING_FILE
        return parse_mapping(load_recipe(file), str(file)) if file.is_file() else ColumnMapping()
    if isinstance(mapping, Mapping):
        return parse_mapping(mapping, "mapping")
    if not Path(mapping).is_file():
        raise FileNotFoundError(f"mapping {mapping} does not exist: give a YAML file that maps columns")
    return parse_mapping(load_recipe(mapping), str(mapping))


def parse_mapping(values: Mapping[str, Any], where: str) -> ColumnMapping:
    """A mapping from plain values, as YAML has them. Raises ValueError naming `where`, the key and the value."""
    require_known(values.keys(), [field.name for field in fields(ColumnMapping)], where)
    checked = {key: _checked(key, value, f"{where}: {key}") for key, value in values.items() if value is not None}
    try:
        return ColumnMapping(**checked)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def nearest_name(name: str, names: Sequence[str]) -> str:
    """` (did you mean 'observations/qpos'?)` when one of `names` is like `name` or ends in it, otherwise nothing."""
    ends = [known for known in names if known.replace(".", "/").rpartition("/")[2] == name]
    near = ends or difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _checked(key: str, value: Any, where: str) -> Any:
    if key in ("action", "state"):
        columns = [value] if isinstance(value, str) else value
        if not isinstance(columns, Sequence) or not all(isinstance(column, str) for column in columns):
            raise ValueError(f"{where} must be a column or a list of columns, got {value!r}")
        return tuple(columns)
    if key == "rate":
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{where} must be a number (control steps a second, Hz), got {value!r}")
        return float(value)
    if key == "images":
        if not isinstance(value, Mapping) or not all(isinstance(column, str) for column in value.values()):
            raise ValueError(f"{where} must be a mapping of camera names to columns, got {value!r}")
        return {str(camera): column for camera, column in value.items()}
    if key == "embodiment" and isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, str):
        raise ValueError(f"{where} must be text, got {value!r}")
    return value


__all__ = ["MAPPING_FILE", "ColumnMapping", "nearest_name", "parse_mapping", "read_mapping"]
