"""Finished trials of an evaluation in its folder, one line each: a killed evaluation goes on where it was.

`trials.jsonl` begins with the settings and has a line for every finished trial, appended with one write and flushed to
the disk when the trial ends. A last line that was cut off by the process's end is dropped, and its trial runs again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from PIL import Image

from .episodes import Episode
from .evaluation_arguments import TRIALS_FILE
from .videos import film_strip, write_video

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two evaluations out of one folder
    fcntl = None  # type: ignore[assignment]

FILM_RATE = 20.0  # frames a second
TOLD_APART = "weights"  # a setting that says nothing to people


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial: `steps` and `seconds` that it took, and its film, a file's path from the records' folder."""

    task: str
    trial: int
    success: bool
    steps: int
    seconds: float
    film: str | None = None


class TrialRecords:
    """The finished trials in `folder`, all of the same settings. One process at a time has them open.

    Args:
        folder: is made if need be. Films go into its `films`, strips of failures into its `strips`.
        settings: whatever decides a trial's outcome, as JSON has it.

    Raises:
        ValueError: the trials there are of other settings, naming the first that differs; or a line is damaged.
        RuntimeError: another process has them open.
    """

    def __init__(self, folder: str | Path, settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.finished: dict[tuple[str, int], TrialRecord] = {}
        self._file = (self.folder / TRIALS_FILE).open("a+b", buffering=0)
        try:
            self._lock()
            self._read(json.loads(json.dumps(dict(settings))))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def require(self, tasks: Sequence[str], trials: int) -> dict[tuple[str, int], bool]:
        """The outcomes that are there, by task and trial, for an evaluation of these `tasks` and so many `trials`.

        Raises ValueError unless that includes all of them: a report that leaves finished trials out would be chosen.
        """
        for task, trial in self.finished:
            if task not in tasks:
                raise ValueError(
                    f"{self.folder} has finished trials of {task!r}: name it in --tasks too, or choose another folder"
                )
            if trial >= trials:
                most = 1 + max(other.trial for other in self.finished.values() if other.task == task)
                raise ValueError(
                    f"--trials {trials}: {self.folder} has {most} of {task!r} already: ask for at least as many, or "
                    "choose another folder"
                )
        return {key: record.success for key, record in self.finished.items()}

    def add(self, episode: Episode) -> None:
        """Writes a trial's film, if it has one, and then its line. A trial that is there already stays as it is."""
        if (episode.task, episode.trial) in self.finished:
            return
        film = None
        if episode.film is not None:
            name = f"films/{episode.task}-{episode.trial}-{'success' if episode.success else 'failure'}.mp4"
            film = write_video(self.folder / name, episode.film, FILM_RATE).relative_to(self.folder).as_posix()
        first = self._first_failure(episode.task)
        if episode.strip is not None and (first is None or episode.trial < first):
            self._write_strip(episode)
        record = TrialRecord(
            episode.task, episode.trial, episode.success, episode.steps, round(episode.seconds, 3), film
        )
        self._append(asdict(record))
        self.finished[record.task, record.trial] = record

    def strip(self, task: str) -> tuple[int, Path] | None:
        """The first trial of `task` that failed, and the picture of it; None where there is no such picture."""
        trial = self._first_failure(task)
        if trial is None or not self._strip_file(task, trial).is_file():
            return None
        return trial, self._strip_file(task, trial)

    def _first_failure(self, task: str) -> int | None:
        failed = (record.trial for record in self.finished.values() if record.task == task and not record.success)
        return min(failed, default=None)

    def _strip_file(self, task: str, trial: int) -> Path:
        return self.folder / "strips" / f"{task}-{trial}.png"

    def _write_strip(self, episode: Episode) -> None:
        assert episode.strip is not None
        file = self._strip_file(episode.task, episode.trial)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(film_strip(np.asarray(episode.strip))).save(file)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except OSError:
            raise RuntimeError(
                f"another evaluation is writing into {self.folder}: wait for its end, or choose another folder"
            ) from None

    def _read(self, settings: dict[str, Any]) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)
        entries = []
        for number, line in enumerate(lines, 1):
            try:
                entries.append(json.loads(line))
                entries[-1] = entries[-1]["settings"] if number == 1 else TrialRecord(**entries[-1])
            except (ValueError, TypeError, KeyError):
                if number == len(lines):  # a machine that went down can leave a last line of zeros
                    whole = whole[: -len(line)]
                    break
                raise ValueError(
                    f"{self._file.name} is damaged in line {number}: remove that line and its trial runs again, or "
                    "choose another folder"
                ) from None
        if len(entries) < 2:
            self._file.truncate(0)
            self._append({"settings": settings})
            return
        self._require_same(entries[0], settings)
        self._file.truncate(len(whole))
        for record in entries[1:]:
            self.finished.setdefault((record.task, record.trial), record)

    def _require_same(self, there: dict[str, Any], here: dict[str, Any]) -> None:
        for name in {**there, **here}:
            old, new = there.get(name), here.get(name)
            if old != new:
                told = "" if name == TOLD_APART else f" ({old!r} there, {new!r} here)"
                raise ValueError(
                    f"--output-dir {self.folder} has finished trials of another {name.replace('_', ' ')}{told}: go on "
                    "with the same settings, or choose another folder"
                )

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = (json.dumps(entry) + "\n").encode()
        if self._file.write(line) != len(line):
            raise OSError(f"{self._file.name} could not be written to its end: is the disk full?")
        os.fsync(self._file.fileno())


__all__ = ["TrialRecord", "TrialRecords"]
