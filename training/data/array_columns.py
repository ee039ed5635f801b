"""What the readers of HDF5, NPZ and parquet files have in common: episodes as named columns of numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .column_mapping import MAPPING_FILE, ColumnMapping, nearest_name
from .frame_readers import CameraFrames

ACTION_NAMES = ("action", "actions")
STATE_NAMES = ("observation.state", "state", "states")
TIMESTAMP_NAMES = ("timestamp", "timestamps")
SHOWN_COLUMNS = 12  # of a file, in an error


class EpisodeColumns(Protocol):
    """One episode of an open file. `where` names it in errors; `name` is its own, where the file gives it one."""

    where: str
    name: Any

    def numbers(self, column: str) -> NDArray[Any]:
        """A column as (T, k). Raises ValueError when it is missing, damaged or does not hold numbers."""
        ...

    def text(self, column: str) -> str:
        """The first sentence of a column. Raises ValueError when it is missing or holds no text."""
        ...

    def frames(self, column: str, length: int) -> CameraFrames:
        """The reader of a column of `length` images. Raises ValueError when it is missing or holds something else."""
        ...


class ColumnFile(Protocol):
    """An open file that holds one or more episodes."""

    def completed(self, mapping: ColumnMapping) -> ColumnMapping:
        """`mapping` with what the file's layout tells where it is open. Raises ValueError on an unknown layout."""
        ...

    def episodes(self, mapping: ColumnMapping) -> Sequence[EpisodeColumns]: ...


def plain_layout(
    mapping: ColumnMapping, names: Sequence[str], where: str, episode_names: Iterable[str] = ()
) -> ColumnMapping:
    """`mapping` completed by the usual names of columns, where `names` has them.

    A column of timestamps is taken when no rate is given. Raises ValueError when there is no action among them.
    """

    def first(usual: Iterable[str]) -> str | None:
        return next((name for name in usual if name in names), None)

    action, state = first(ACTION_NAMES), first(STATE_NAMES)
    if mapping.action is None and action is None:
        raise ValueError(
            f"{where}: unknown layout, it has {shown(names)} but no {' or '.join(map(repr, ACTION_NAMES))}: say which "
            f"column is the action by mapping={{'action': ...}} or in {MAPPING_FILE} beside the data"
        )
    return mapping.completed(
        action=None if action is None else (action,),
        state=() if state is None else (state,),
        timestamp=first(TIMESTAMP_NAMES) if mapping.rate is None else None,
        episode=first(episode_names),
        images={},
    )


def as_matrix(values: NDArray[Any], where: str) -> NDArray[Any]:
    """Numbers (T, k) of an array (T,) or (T, k). Raises ValueError naming `where`, dtype and shape."""
    if values.dtype.kind not in "biuf":
        raise ValueError(f"{where} holds {values.dtype}, numbers are needed")
    if values.ndim not in (1, 2):
        raise ValueError(f"{where} has shape {values.shape}, expected (steps, dims)")
    return values if values.ndim == 2 else values[:, None]


def missing_column(column: str, names: Sequence[str], where: str) -> ValueError:
    return ValueError(f"{where}: there is no {column!r}, it has {shown(names)}{nearest_name(column, names)}")


def shown(names: Sequence[str]) -> str:
    """The first names of a list, for an error."""
    more = f" and {len(names) - SHOWN_COLUMNS} more" if len(names) > SHOWN_COLUMNS else ""
    return (", ".join(map(repr, names[:SHOWN_COLUMNS])) or "nothing") + more


def natural_order(name: str) -> list[Any]:
    """A sorting key by which `demo_9` comes before `demo_10`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def required_text(value: Any, where: str) -> str:
    """A sentence from what a file holds: text, bytes, or numpy's. Raises ValueError naming `where` and the value."""
    value = value.item() if isinstance(value, np.generic | np.ndarray) and np.size(value) == 1 else value
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    if not isinstance(value, str):
        raise ValueError(f"{where} is {value!r}, expected text")
    return value


__all__ = [
    "ColumnFile",
    "EpisodeColumns",
    "as_matrix",
    "missing_column",
    "natural_order",
    "plain_layout",
    "required_text",
    "shown",
]
