"""A folder that appears whole or not at all: filled under a hidden name beside its place, then moved there."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import warnings
import weakref
from pathlib import Path

from .lerobot_layout import INFO_FILE


class StagedFolder:
    """The hidden folder in which the dataset at `root` grows; `path` is made by whoever writes the first file.

    It is removed when the writer is dropped or the interpreter ends before `publish`, though not by a forked child. One
    that a killed process has left for the same place is named in a warning: another process may still be writing it.

    Raises:
        FileExistsError: `root` exists and is not a LeRobot dataset that `overwrite` may replace.
    """

    def __init__(self, root: Path, *, overwrite: bool) -> None:
        self.root = root
        self.path = root.parent / f".{root.name}.partial-{secrets.token_hex(4)}"
        self._overwrite = overwrite
        self._require_place()
        for left in sorted(root.parent.glob(f".{glob.escape(root.name)}.partial-*")):
            warnings.warn(
                f"{left} is half a dataset, of a process that was killed or is still writing: nothing uses it, remove "
                "it when none is",
                stacklevel=3,
            )
        self.remove = weakref.finalize(self, _remove, self.path, os.getpid())

    def publish(self) -> None:
        """Moves the folder to `root`; a dataset that it replaces goes away last, and stays when the move fails."""
        self._require_place()
        if not self.root.exists():
            os.replace(self.path, self.root)
            return
        old = self.path.with_name(f"{self.path.name}.old")
        os.replace(self.root, old)
        try:
            os.replace(self.path, self.root)
        except OSError:
            os.replace(old, self.root)
            raise
        shutil.rmtree(old, ignore_errors=True)

    def _require_place(self) -> None:
        if not (self.root.exists() or self.root.is_symlink()):
            return
        if not self._overwrite:
            raise FileExistsError(f"{self.root} exists: choose another folder, or pass overwrite=True")
        if self.root.is_symlink() or not (self.root / INFO_FILE).is_file():
            raise FileExistsError(f"{self.root} is not a LeRobot dataset, it is not overwritten: remove it by hand")


def _remove(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)


__all__ = ["StagedFolder"]
