"""HDF5 files of episodes: robomimic's and ALOHA's layouts are known, any other takes a column mapping.

robomimic (also LIBERO, RoboCasa): groups `data/demo_<i>` with `actions` and `obs/<key>`; the control rate and LIBERO's
instruction stand in JSON attributes of `data`. ALOHA: one episode a file with `action`, `observations/qpos` and
`observations/images/<camera>`; the rate is not recorded.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .array_columns import EpisodeColumns, as_matrix, missing_column, natural_order, plain_layout, required_text, shown
from .column_mapping import MAPPING_FILE, ColumnMapping
from .frame_readers import CameraFrames, decoded_image

ROBOMIMIC_EPISODES = "data/*"
# What a robot knows of itself, among observations that also hold the simulator's objects: robomimic's own choice.
ROBOMIMIC_STATE = ("eef_pos", "eef_quat", "gripper_qpos")
LIBERO_STATE = ("ee_pos", "ee_ori", "gripper_states")
ALOHA_STATE, ALOHA_IMAGES = "observations/qpos", "observations/images"
UNREADABLE = "is not a readable HDF5 file (truncated or damaged?)"


@contextmanager
def open_hdf5(file: Path) -> Iterator[Hdf5Columns]:
    """Opens `file`. Raises ImportError without h5py, ValueError when the file is damaged."""
    with _opened(file) as content:
        yield Hdf5Columns(file, content)


class Hdf5Columns:
    """An open HDF5 file; columns are paths within it, or within an episode's group."""

    def __init__(self, file: Path, content: Any) -> None:
        self.file = file
        self._content = content

    def completed(self, mapping: ColumnMapping) -> ColumnMapping:
        demos = list(_groups(self._content, ROBOMIMIC_EPISODES))
        if mapping.episode in (None, ROBOMIMIC_EPISODES) and demos and "actions" in demos[0]:
            return self._robomimic(mapping, demos[0])
        if mapping.episode is None and "action" in self._content and ALOHA_STATE in self._content:
            images = self._content.get(ALOHA_IMAGES, {})
            cameras = {camera: f"{ALOHA_IMAGES}/{camera}" for camera in images}
            return mapping.completed(action=("action",), state=(ALOHA_STATE,), images=cameras)
        return plain_layout(mapping, _columns(self._groups(mapping)[0]), str(self.file))

    def episodes(self, mapping: ColumnMapping) -> list[EpisodeColumns]:
        return [Hdf5Episode(self.file, group) for group in self._groups(mapping)]

    def _groups(self, mapping: ColumnMapping) -> list[Any]:
        if mapping.episode is None:
            return [self._content]
        groups = list(_groups(self._content, mapping.episode))
        if not groups:
            raise ValueError(
                f"{self.file}: no group matches episode: {mapping.episode!r}, the file has {shown(list(self._content))}"
            )
        return groups

    def _robomimic(self, mapping: ColumnMapping, demo: Any) -> ColumnMapping:
        observations = demo.get("obs", {})
        images = [key for key, values in observations.items() if values.dtype == np.uint8 and values.ndim == 4]
        data = self._content["data"].attrs
        environment = _json_attribute(data, "env_args").get("env_kwargs") or {}
        return mapping.completed(
            action=("actions",),
            state=self._proprioception(list(observations)) if mapping.state is None else None,
            images={key.removesuffix("_image").removesuffix("_rgb"): f"obs/{key}" for key in images},
            episode=ROBOMIMIC_EPISODES,
            rate=environment.get("control_freq"),
            task=_json_attribute(data, "problem_info").get("language_instruction"),
        )

    def _proprioception(self, keys: Sequence[str]) -> tuple[str, ...]:
        robots = sorted({match.group() for key in keys if (match := re.match(r"robot\d+_", key))})
        known = [robot + part for robot in robots for part in ROBOMIMIC_STATE] + list(LIBERO_STATE)
        chosen = tuple(f"obs/{key}" for key in known if key in keys)
        if keys and not chosen:
            raise ValueError(
                f"{self.file}: which observations are the robot's own state? obs has {shown(keys)}: name them by "
                f"mapping={{'state': ['obs/...']}} or in {MAPPING_FILE} beside the data; [] is a body without state"
            )
        return chosen


class Hdf5Episode:
    """An episode: a group of an open file, or all of it."""

    def __init__(self, file: Path, group: Any) -> None:
        self.where = str(file) if group.name == "/" else f"{file}: {group.name.strip('/')}"
        self.name = None
        self._file = file
        self._group = group

    def numbers(self, column: str) -> NDArray[Any]:
        return as_matrix(self._values(column), f"{self.where}: {column!r}")

    def text(self, column: str) -> str:
        """Text stands in a dataset or in an attribute of the episode's group."""
        attributes = self._group.attrs
        value = attributes[column] if column in attributes else np.ravel(self._values(column))[0]
        return required_text(value, f"{self.where}: {column!r}")

    def frames(self, column: str, length: int) -> CameraFrames:
        images = self._dataset(column)
        where = f"{self.where}: {column!r}"
        raw = images.ndim == 4 and images.shape[3] == 3 and images.dtype == np.uint8
        encoded = images.ndim in (1, 2) and (images.dtype == np.uint8 or images.dtype.kind in "OSV")
        if not raw and not encoded:
            raise ValueError(
                f"{where} is {images.dtype} {images.shape}, expected uint8 (steps, height, width, 3) or encoded images"
            )
        if len(images) != length:
            raise ValueError(
                f"{where} has {len(images)} images, the episode has {length} actions: they must be equally many"
            )
        return Hdf5Images(self._file, images.name)

    def _values(self, column: str) -> Any:
        dataset = self._dataset(column)
        try:
            return np.asarray(dataset[()])
        except OSError as error:
            raise ValueError(f"{self._file} {UNREADABLE}: {column!r}: {error}. Copy or record it again") from error

    def _dataset(self, column: str) -> Any:
        dataset = self._group.get(column)
        if not hasattr(dataset, "dtype"):
            raise missing_column(column, _columns(self._group), self.where)
        return dataset


class Hdf5Images:
    """Images of one camera in one episode: an array (T, h, w, 3), or encoded (JPEG, PNG) bytes a step, zero-padded.

    Encoded images have the colours that any viewer shows (RGB).
    """

    def __init__(self, file: Path, column: str) -> None:
        self._file = file
        self._column = column

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        with _opened(self._file) as content:
            images = content[self._column]
            try:
                read = {index: images[index] for index in set(indices)}
            except OSError as error:
                raise ValueError(f"{self._file} {UNREADABLE}: {self._column!r}: {error}") from error
            if images.ndim != 4:
                where = f"{self._file}: {self._column!r}, step"
                read = {index: decoded_image(bytes(image), f"{where} {index}") for index, image in read.items()}
        return np.stack([read[index] for index in indices])


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{file}: reading HDF5 needs h5py: pip install 'priorvla[hdf5]'") from error
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: copy or record it again")
    try:
        content = h5py.File(file, "r")
    except OSError as error:
        raise ValueError(f"{file} {UNREADABLE}: {error}. Copy or record it again") from error
    with content:
        yield content


def _groups(group: Any, pattern: str) -> Iterator[Any]:
    """Groups whose path matches `pattern` part by part, in the order of the numbers in their names."""
    first, _, rest = pattern.strip("/").partition("/")
    for name in sorted(fnmatch.filter(group.keys(), first), key=natural_order):
        child = group[name]
        if hasattr(child, "keys"):
            yield from _groups(child, rest) if rest else [child]


def _columns(group: Any) -> list[str]:
    """Paths of all datasets in `group`."""
    paths: list[str] = []

    def visit(path: str, entry: Any) -> None:
        if hasattr(entry, "dtype"):
            paths.append(path)

    group.visititems(visit)
    return paths


def _json_attribute(attributes: Any, name: str) -> dict[str, Any]:
    """A JSON object in an attribute; an empty one when the attribute is missing or something else."""
    try:
        content = json.loads(attributes.get(name, "{}"))
    except (TypeError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


__all__ = ["open_hdf5"]
