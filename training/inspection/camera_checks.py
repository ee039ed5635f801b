"""What the cameras saw: missing, unreadable, frozen and blank pictures, from a bounded number of frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .findings import Finding, Severity, counted, listed
from .recording import Recording
from .thresholds import InspectionThresholds

COMPARED_SIDE = 32  # pictures are compared as so many grey blocks a side
FEATURE_SIDE = 8  # and told apart, for the instruction, by so many
SHOWN = 6  # first frames a camera that the report shows
SHOWN_SIDE = 200  # pixels


@dataclass(eq=False)
class Cameras:
    """What a look at the cameras gave.

    Args:
        sizes: (height, width) seen, by camera.
        frames_read: how many frames were decoded.
        pictures: (features,) 8 x 8 grey values of all cameras' first frames, by the episode's place in the recording.
        shown: a few first frames by camera: (episode number, small picture).
        findings: see `check_cameras`.
    """

    sizes: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    frames_read: int = 0
    pictures: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    shown: dict[str, list[tuple[int, NDArray[np.uint8]]]] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)


def check_cameras(
    recording: Recording, absent: Mapping[str, Mapping[int, str]], thresholds: InspectionThresholds
) -> Cameras:
    """Looks at first frames and at frames along evenly chosen episodes, at most `frame_budget` in all.

    Findings: `missing-frames`, `unreadable-frames`, `frozen-camera`, `blank-frames`, `frame-sizes`, one a camera.

    Args:
        recording: episodes with frame readers.
        absent: by camera, what is missing by episode number, as far as that is known without reading.
    """
    seen = Cameras()
    readers = [trajectory.frames for trajectory in recording.trajectories]
    names = list(dict.fromkeys(camera for reader in readers if reader is not None for camera in reader.cameras))
    names = list(dict.fromkeys([*names, *absent]))
    for name in names:
        look = _Look(recording, name, dict(absent.get(name, {})), thresholds)
        look.at_first_frames(thresholds.frame_budget // 2 // len(names))
        look.along_episodes(thresholds.frame_budget // 2 // len(names))
        seen.findings += look.findings()
        seen.frames_read += look.frames_read
        seen.sizes[name] = sorted(look.sizes)
        seen.shown[name] = look.shown
        for place, features in look.features.items():
            seen.pictures[place] = np.concatenate([seen.pictures.get(place, np.zeros(0, np.float32)), features])
    widest = max((len(features) for features in seen.pictures.values()), default=0)
    seen.pictures = {place: vector for place, vector in seen.pictures.items() if len(vector) == widest}
    return seen


class _Look:
    """What was seen by one camera."""

    def __init__(
        self, recording: Recording, camera: str, missing: dict[int, str], thresholds: InspectionThresholds
    ) -> None:
        self._recording, self._camera, self._thresholds = recording, camera, thresholds
        self._missing = missing
        self._unreadable: dict[int, str] = {}
        self._frozen: dict[int, float] = {}
        self._blank: dict[int, float] = {}
        self.frames_read = 0
        self.sizes: dict[tuple[int, int], int] = {}
        self.features: dict[int, NDArray[np.float32]] = {}
        self.shown: list[tuple[int, NDArray[np.uint8]]] = []
        for place, trajectory in enumerate(recording.trajectories):
            if trajectory.frames is None or camera not in trajectory.frames.cameras:
                number = int(recording.numbers[place])
                self._missing.setdefault(number, f"episode {number} has no frames of it")

    def at_first_frames(self, budget: int) -> None:
        """Size, blankness, and the features that tell episodes apart, of evenly chosen episodes."""
        places = self._chosen(budget)
        shown = set(np.linspace(0, len(places) - 1, min(SHOWN, len(places))).astype(int).tolist())
        for count, place in enumerate(places):
            frames = self._read(place, [0])
            if frames is None:
                continue
            self.features[place] = _grey(frames[0], FEATURE_SIDE).reshape(-1)
            self._note_blank(place, _grey(frames[0], COMPARED_SIDE))
            if count in shown:
                picture = Image.fromarray(frames[0])
                picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
                self.shown.append((int(self._recording.numbers[place]), np.asarray(picture)))

    def along_episodes(self, budget: int) -> None:
        """Frozen and blank pictures within evenly chosen episodes."""
        frames = self._thresholds.frames_per_episode
        for place in self._chosen(budget // frames):
            length = int(self._recording.lengths[place])
            steps = np.unique(np.linspace(0, length - 1, min(frames, length)).astype(int)).tolist()
            pictures = self._read(place, steps)
            if pictures is None or len(steps) < 3:
                continue
            grey = np.stack([_grey(picture, COMPARED_SIDE) for picture in pictures])
            for picture in grey:
                self._note_blank(place, picture)
            same = np.abs(np.diff(grey, axis=0)).max((1, 2)) < self._thresholds.frozen_level
            moved = self._moved(place, steps)
            if moved.sum() >= 2 and (same & moved).sum() >= 0.5 * moved.sum():
                self._frozen[int(self._recording.numbers[place])] = float((same & moved).sum() / moved.sum())

    def findings(self) -> list[Finding]:
        total, camera = len(self._recording.numbers), repr(self._camera)
        findings = []
        if self._missing:
            findings.append(
                self._finding(
                    "missing-frames",
                    Severity.ERROR,
                    self._missing,
                    f"Camera {camera}: the frames of {len(self._missing)} of {counted(total, 'episode')} are missing: "
                    f"episodes {_ranges(sorted(self._missing))}; for example {next(iter(self._missing.values()))}.",
                    "Download them, or take these episodes out of the dataset; for an action prior frames are not "
                    "needed: inspect with --no-images.",
                )
            )
        if self._unreadable:
            findings.append(
                self._finding(
                    "unreadable-frames",
                    Severity.ERROR,
                    self._unreadable,
                    f"Camera {camera}: frames of {counted(len(self._unreadable), 'episode')} cannot be read: "
                    f"{next(iter(self._unreadable.values()))}",
                    "Download or record these episodes again, or take them out of the dataset.",
                )
            )
        if self._frozen:
            findings.append(
                self._finding(
                    "frozen-camera",
                    Severity.WARNING,
                    self._frozen,
                    f"Camera {camera} stands still while the robot moves in {counted(len(self._frozen), 'episode')}: "
                    f"{listed(list(self._frozen))}.",
                    "Leave these episodes out, or record them again: the picture is an old one.",
                )
            )
        if self._blank:
            level = "black" if max(self._blank.values()) < 16 else "of one colour"
            findings.append(
                self._finding(
                    "blank-frames",
                    Severity.WARNING,
                    self._blank,
                    f"Camera {camera} gave frames {level} in {counted(len(self._blank), 'episode')}: "
                    f"{listed(list(self._blank))}.",
                    "Check the camera and its exposure; cut the first frames if it was still starting.",
                )
            )
        if len(self.sizes) > 1:
            shown = [f"{width} x {height}" for height, width in self.sizes]
            findings.append(
                Finding(
                    "frame-sizes",
                    Severity.WARNING,
                    f"Camera {camera} has frames of {len(self.sizes)} sizes: {listed(shown)}.",
                    "Bring all episodes to one size: different crops of a scene look like different scenes.",
                    dims=[self._camera],
                    numbers={"sizes": len(self.sizes)},
                )
            )
        return findings

    def _finding(
        self, code: str, severity: Severity, episodes: dict[int, str] | dict[int, float], message: str, remedy: str
    ) -> Finding:
        return Finding(
            code,
            severity,
            message,
            remedy,
            episodes=sorted(episodes),
            dims=[self._camera],
            numbers={"count": len(episodes), "frames_read": self.frames_read},
        )

    def _chosen(self, count: int) -> list[int]:
        """At most `count` places, evenly, of episodes whose frames are not known to be missing or unreadable."""
        known = {*self._missing, *self._unreadable}
        places = [place for place, number in enumerate(self._recording.numbers.tolist()) if number not in known]
        if len(places) <= max(1, count):
            return places
        return [places[i] for i in np.linspace(0, len(places) - 1, max(1, count)).astype(int)]

    def _read(self, place: int, steps: Sequence[int]) -> NDArray[np.uint8] | None:
        number = int(self._recording.numbers[place])
        reader = self._recording.trajectories[place].frames
        assert reader is not None
        try:
            frames = reader.read(self._camera, steps)
        except FileNotFoundError as error:
            self._missing[number] = str(error)
            return None
        except (ValueError, OSError) as error:
            self._unreadable[number] = str(error)
            return None
        self.frames_read += len(frames)
        size = (int(frames.shape[1]), int(frames.shape[2]))
        self.sizes[size] = self.sizes.get(size, 0) + 1
        return frames

    def _note_blank(self, place: int, grey: NDArray[np.float32]) -> None:
        if grey.std() < self._thresholds.blank_level:
            self._blank[int(self._recording.numbers[place])] = float(grey.mean())

    def _moved(self, place: int, steps: list[int]) -> NDArray[np.bool_]:
        """(len(steps) - 1,) whether the robot moved from each of `steps` to the next."""
        recording = self._recording
        rows = int(recording.starts[place]) + np.array(steps)
        moved = np.zeros(len(steps) - 1, dtype=bool)
        for values, statistics in recording.labels():
            kept = statistics.moves
            # An action alone proves no motion where there is a state to see it by.
            if kept.any() and (statistics.label == "state" or not recording.states.shape[1]):
                change = np.abs(np.diff(values[rows][:, kept], axis=0)) / statistics.middle_range[kept]
                moved |= change.max(1) > self._thresholds.moved_range
        return moved


def _grey(frame: NDArray[np.uint8], side: int) -> NDArray[np.float32]:
    """(side, side) grey levels, each the mean of a block."""
    small = Image.fromarray(frame).convert("L").resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)


def _ranges(numbers: list[int]) -> str:
    """`0-28, 31-58 and 60-99`-like: runs of whole numbers, at most five of them."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return listed([str(first) if first == last else f"{first}-{last}" for first, last in runs], 5)


__all__ = ["Cameras", "check_cameras"]
