"""Finished trials of an evaluation in its folder, one line each: a killed evaluation goes on where it was.

`trials.jsonl` has a line for every finished trial, appended with one write and flushed to the disk when the trial ends.
Before a robot's first trial stand its settings. A last line that was cut off by the process's end is dropped, and its
trial runs again.
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
from .task_files import task_file_name
from .videos import film_strip, write_video

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two evaluations out of one folder
    fcntl = None  # type: ignore[assignment]

FILM_RATE = 20.0  # frames a second
SETTINGS_LINE = b'{"settings": '  # how every file of ours begins
TOLD_APART = "weights"  # a setting that says nothing to people
VERSIONS = "versions"  # one that older records lack: those of packages, by name
ROBOT_SETTINGS = ("robot", "embodiment", "action_limits")  # those that robots of one evaluation may differ in


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial: `steps` and `seconds` that it took, its film and its strip, paths from the records' folder.

    `commands` are the `CommandCounts` where the policy told them, `outcome` is what was done where the environment did.
    """

    task: str
    trial: int
    success: bool
    steps: int
    seconds: float
    film: str | None = None
    strip: str | None = None
    robot: str = ""
    commands: dict[str, int] | None = None
    outcome: str | None = None

    def __post_init__(self) -> None:
        whole = (type(self.trial), type(self.steps)) == (int, int) and self.trial >= 0  # True is no number of a trial
        texts = isinstance(self.task, str) and isinstance(self.robot, str) and isinstance(self.outcome, str | None)
        files = all(file is None or isinstance(file, str) for file in (self.film, self.strip))
        measured = isinstance(self.success, bool) and isinstance(self.seconds, (int, float))
        counted = self.commands is None or isinstance(self.commands, dict)
        if not (whole and texts and files and measured and counted):
            raise TypeError(f"{self} is no finished trial: a value is of another type")


class TrialRecords:
    """The finished trials in `folder`, of each robot all of the same settings. One process at a time has them open.

    Args:
        folder: is made if need be. Films go into its `films`, strips of failures into its `strips`.
        settings: whatever decides a trial's outcome, as JSON has it. Those of several robots, each with its `robot`,
            differ in `ROBOT_SETTINGS` alone.

    Raises:
        ValueError: the trials there are of other settings, naming the first that differs, or of another robot; or a
            line is damaged, or the file is not of an evaluation. The file stays as it is.
        RuntimeError: another process has them open.
    """

    def __init__(self, folder: str | Path, *settings: Mapping[str, Any]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.finished: dict[tuple[str, str, int], TrialRecord] = {}  # by robot, task and trial
        self._settings: dict[str, dict[str, Any]] = {
            own.get("robot", ""): json.loads(json.dumps(dict(own))) for own in settings
        }
        self._file = (self.folder / TRIALS_FILE).open("a+b", buffering=0)
        try:
            self._lock()
            self._told = self._read()
            _keep_entries(self.folder)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def require(self, tasks: Sequence[str], trials: int, robot: str = "") -> dict[tuple[str, int], bool]:
        """The outcomes of `robot` that are there, by task and trial, for an evaluation of `tasks` and so many `trials`.

        Raises ValueError unless that includes all trials of all robots: a report that leaves finished ones out would be
        chosen.
        """
        for _, task, trial in self.finished:
            if task not in tasks:
                raise ValueError(
                    f"{self.folder} has finished trials of {task!r}: name it in --tasks too, or choose another folder"
                )
            if trial >= trials:
                most = 1 + max(other for _, own, other in self.finished if own == task)
                raise ValueError(
                    f"--trials {trials}: {self.folder} has {most} of {task!r} already: ask for at least as many, or "
                    "choose another folder"
                )
        return {(task, trial): done.success for (own, task, trial), done in self.finished.items() if own == robot}

    def add(self, episode: Episode, robot: str = "") -> None:
        """Writes a trial's film, if it has one, and then its line. A trial that is there already stays as it is."""
        if (robot, episode.task, episode.trial) in self.finished:
            return
        own = Path(task_file_name(robot) if robot else "", task_file_name(episode.task))
        name, film, strip = f"{own}-{episode.trial}", None, None
        if episode.film is not None:
            file = self.folder / "films" / f"{name}-{'success' if episode.success else 'failure'}.mp4"
            film = self._from_here(write_video(file, episode.film, FILM_RATE))
        first = self.first_failure(episode.task, robot)
        if episode.strip is not None and (first is None or episode.trial < first.trial):
            file = self.folder / "strips" / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(film_strip(np.asarray(episode.strip))).save(file)
            strip = self._from_here(file)
        seconds = round(episode.seconds, 3)
        commands = None if episode.commands is None else asdict(episode.commands)
        told = (film, strip, robot, commands, episode.outcome)
        record = TrialRecord(episode.task, episode.trial, episode.success, episode.steps, seconds, *told)
        if robot not in self._told:
            self._append({"settings": self._settings[robot]})
            self._told.add(robot)
        self._append(asdict(record))
        self.finished[robot, record.task, record.trial] = record

    def first_failure(self, task: str, robot: str = "") -> TrialRecord | None:
        """The first trial of `task` that failed; None where none did."""
        failed = (r for r in self.finished.values() if r.task == task and r.robot == robot and not r.success)
        return min(failed, key=lambda record: record.trial, default=None)

    def _from_here(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however that ends
        except OSError:
            raise RuntimeError(
                f"another evaluation is writing into {self.folder}: wait for its end, or choose another folder"
            ) from None

    def _read(self) -> set[str]:
        """Takes what is in the file; the robots whose settings are there."""
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)
        if content.strip(b"\0\n") and not content.startswith(SETTINGS_LINE[: len(content)]):
            raise ValueError(
                f"{self._file.name} does not begin with the settings of an evaluation: its first line is damaged, or "
                "it is of something else; restore that line, or choose another folder"
            )
        settings: dict[str, dict[str, Any]] = {}
        for number, line in enumerate(lines, 1):
            try:
                entry = json.loads(line)
            except ValueError:
                if number == len(lines):  # a machine that went down can leave a last line of zeros
                    whole = whole[: -len(line)]
                    break
                raise self._damaged(number, line) from None
            try:
                if "settings" in entry:
                    settings[entry["settings"].get("robot", "")] = entry["settings"]
                    continue
                record = self._record(entry, next(iter(settings)))
            except (TypeError, KeyError, AttributeError):
                raise self._damaged(number, line) from None
            if record.robot not in settings:
                raise ValueError(
                    f"{self._file.name} has a trial of {record.robot!r} in line {number} and no settings of it before: "
                    "restore that line, or choose another folder"
                )
            self.finished.setdefault((record.robot, record.task, record.trial), record)
        robots = {robot for robot, _, _ in self.finished}  # settings without a trial bind nobody
        for robot in settings:
            if robot in robots:
                self._require_same(_without_robot_option(settings[robot]), robot)
        self._file.truncate(len(whole) if robots else 0)
        return robots

    def _damaged(self, number: int, line: bytes) -> ValueError:
        remedy = "remove that line and its trial runs again"
        if line.startswith(SETTINGS_LINE):
            remedy = "it has the settings of the trials after it: restore that line"
        return ValueError(f"{self._file.name} is damaged in line {number}: {remedy}, or choose another folder")

    def _record(self, entry: dict[str, Any], only_robot: str) -> TrialRecord:
        """A line's; in those from before an evaluation had several robots it does not stand, nor does the strip."""
        if "robot" in entry:
            return TrialRecord(**entry)
        strip = f"strips/{task_file_name(entry['task'])}-{entry['trial']}.png"
        return TrialRecord(**entry, strip=strip if (self.folder / strip).is_file() else None, robot=only_robot)

    def _require_same(self, there: dict[str, Any], robot: str) -> None:
        """Raises ValueError unless `there` are the settings of `robot` here."""
        here = self._settings.get(robot)
        if here is None:
            any_other = next(iter(self._settings.values()))
            here = {**any_other, **{name: there[name] for name in ROBOT_SETTINGS if name in there}}
        for name in {**there, **here}:
            old, new = there.get(name), here.get(name)
            if isinstance(old, dict) and isinstance(new, dict):
                old, new = _unlike(old, new), _unlike(new, old)
            if old != new and not (name == VERSIONS and old is None):
                told = "" if name == TOLD_APART else f" ({old!r} there, {new!r} here)"
                raise ValueError(
                    f"--output-dir {self.folder} has finished trials of another {name.replace('_', ' ')}{told}: go on "
                    "with the same settings, or choose another folder"
                )
        if robot not in self._settings:
            raise ValueError(
                f"--output-dir {self.folder} has finished trials of the arm {robot!r}: name it in --arm too, or choose "
                "another folder"
            )

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = (json.dumps(entry) + "\n").encode()
        if self._file.write(line) != len(line):
            raise OSError(f"{self._file.name} could not be written to its end: is the disk full?")
        os.fsync(self._file.fileno())


def _unlike(own: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in own.items() if name not in other or other[name] != value}


def _keep_entries(folder: Path) -> None:
    """Flushes to the disk that `folder` is there, and what is in it: a power cut can take a new file's name."""
    if os.name != "posix":
        return
    for place in (folder, folder.absolute().parent):
        number = os.open(place, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _without_robot_option(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they are told now: the robot by its name, and not among the environment's options too."""
    options = settings.get("environment_options")
    if "robot" not in settings or not options:
        return settings
    return {**settings, "environment_options": {name: value for name, value in options.items() if name != "robot"}}


__all__ = ["ROBOT_SETTINGS", "TrialRecord", "TrialRecords"]
