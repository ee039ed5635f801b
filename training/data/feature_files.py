"""Tensors of one shape in one file, filled and read in any order and never taken for another's."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KEY_FILE, FEATURES_FILE, DONE_FILE = "key.json", "features.bin", "done.bin"
FORMAT = 3  # raise it whenever the files would mean something else


class FeatureFile:
    """`count` entries of `entry_shape` in a folder of `root` that is named after everything they depend on.

    Another key is another folder, so that what changes features never finds old ones. The folder appears whole, with
    its key and two sparse files: the entries, and a byte for each that says whether it is there. Only entries that are
    written take disk space, and only those that are read come into memory. A process may be stopped at any time; what
    it had written stays. Other processes of the machine may read, and write other entries, at the same time.

    Entries are read, not mapped: random rows of a mapping cost a page fault every 4 kB.

    Args:
        kind: begins the folder's name, for people.
        key: JSON; what the entries depend on.

    Raises:
        ValueError: when there is a folder of that name whose key or sizes are not what the name promises.
    """

    def __init__(
        self,
        root: str | Path,
        kind: str,
        key: Mapping[str, Any],
        count: int,
        entry_shape: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        self.count, self.entry_shape, self.dtype = count, tuple(entry_shape), dtype
        self.key = {"format": FORMAT, **key, "count": count, "entry_shape": list(entry_shape), "dtype": str(dtype)}
        name = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = Path(root) / f"{kind}-{name}"
        self._intact = False  # known to be, once it has been looked at
        if self.folder.exists():
            self._require_intact()

    @property
    def bytes_per_entry(self) -> int:
        return prod(self.entry_shape) * self.dtype.itemsize

    def missing(self, entries: Tensor) -> Tensor:
        """Those of `entries` that are not there yet, sorted and without repeats."""
        wanted = entries.unique()
        return wanted[~self._has(wanted)] if self.folder.is_dir() else wanted

    def create(self) -> None:
        """Makes the folder, unless there is one; two processes may do so at once."""
        if self.folder.is_dir():
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
        try:
            (unfinished / KEY_FILE).write_text(json.dumps(self.key, indent=2) + "\n", encoding="utf-8")
            for name, size in self._sizes().items():
                with (unfinished / name).open("wb") as file:
                    file.truncate(size)  # sparse: blocks are taken when they are written
            unfinished.chmod(0o755)
            unfinished.rename(self.folder)
        except OSError:
            if not self.folder.is_dir():  # otherwise another process was faster, and its folder is the same
                raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def write(self, entries: Tensor, values: Tensor) -> None:
        """Keeps `values` (n, *entry_shape) of `entries` (n,); those that are there already stay as they are."""
        new = ~self._has(entries)
        entries, values = entries[new], values[new]
        rows = values.to(self.dtype).contiguous().view(torch.uint8).reshape(len(values), self.bytes_per_entry)
        with (self.folder / FEATURES_FILE).open("r+b") as file:  # a full disk is an error here; in a mapping, a crash
            for entry, row in zip(entries.tolist(), rows.numpy(), strict=True):
                file.seek(entry * self.bytes_per_entry)
                file.write(row)
        self._done("r+")[entries.numpy()] = 1  # after the entries: stopped in between, they are written again

    def __getitem__(self, entries: Tensor) -> Tensor:
        """(n, *entry_shape) of `entries` (n,), which must have been written."""
        if not self._intact:
            self._require_intact()
            self._intact = True
        rows = torch.empty(len(entries), self.bytes_per_entry, dtype=torch.uint8)
        with (self.folder / FEATURES_FILE).open("rb") as file:
            for entry, row in zip(entries.tolist(), rows.numpy(), strict=True):
                file.seek(entry * self.bytes_per_entry)
                if file.readinto(row) != len(row):
                    raise ValueError(f"{file.name} ends before entry {entry}: delete its folder, it is encoded again")
        return rows.view(self.dtype).view(-1, *self.entry_shape)

    def _sizes(self) -> dict[str, int]:
        return {FEATURES_FILE: self.count * self.bytes_per_entry, DONE_FILE: self.count}

    def _done(self, mode: Any = "r") -> NDArray[np.uint8]:
        return np.memmap(self.folder / DONE_FILE, dtype=np.uint8, mode=mode, shape=(self.count,))

    def _has(self, entries: Tensor) -> Tensor:
        return torch.from_numpy(self._done()[entries.numpy()] != 0)

    def _require_intact(self) -> None:
        if damage := self._damage():
            raise ValueError(
                f"{self.folder} is not the feature cache that its name promises: {damage}. Delete that folder, and its "
                "frames are encoded again"
            )

    def _damage(self) -> str | None:
        try:
            found = json.loads((self.folder / KEY_FILE).read_text(encoding="utf-8"))
            sizes = {name: (self.folder / name).stat().st_size for name in self._sizes()}
        except (OSError, ValueError) as error:
            return str(error)
        if not isinstance(found, dict):
            return f"{KEY_FILE} holds no JSON object"
        for name in self.key:
            if found.get(name) != self.key[name]:
                return f"{KEY_FILE} has {name}={found.get(name)!r:.200}, expected {self.key[name]!r:.200}"
        for name, size in self._sizes().items():
            if sizes[name] != size:
                return f"{name} has {sizes[name]} bytes, expected {size}"
        return None


class LayeredFeatures:
    """Entries (T, *shape) of T layers, each layer in a `FeatureFile` of its own: who reads another choice of layers,
    another host or rung, finds those that both read."""

    def __init__(self, files: Sequence[FeatureFile]) -> None:
        self.files = list(files)
        self.entry_shape, self.dtype = (len(self.files), *self.files[0].entry_shape), self.files[0].dtype

    @property
    def folders(self) -> list[Path]:
        """Of the layers, in their order."""
        return [file.folder for file in self.files]

    def write(self, entries: Tensor, values: Tensor) -> None:
        """Keeps `values` (n, T, ...) of `entries` (n,), as every layer's `write`."""
        for file, own in zip(self.files, values.unbind(1), strict=True):
            file.write(entries, own)

    def __getitem__(self, entries: Tensor) -> Tensor:
        """(n, T, ...) of `entries` (n,), which must have been written."""
        return torch.stack([file[entries] for file in self.files], dim=1)


__all__ = ["FeatureFile", "LayeredFeatures"]
