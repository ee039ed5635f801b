"""The check before training: reads a dataset once and says what is wrong with it and what training will make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...configuration.embodiment import Embodiment
from ..data.trajectory import TrajectorySource
from .agreement_checks import Agreement, check_agreement, measure_agreement
from .camera_checks import Cameras, check_cameras
from .duplicate_checks import check_duplicates
from .findings import Finding, Severity, by_severity, exit_status
from .language_checks import Language, check_language, measure_language
from .lenient_reading import read_leniently
from .motion_checks import check_idle, check_jumps, idle_steps
from .range_checks import check_ranges
from .recording import Recording
from .thresholds import InspectionThresholds
from .timing_checks import Windows, check_lengths, check_timestamps, count_windows


@dataclass(eq=False)
class Measures:
    """What was measured on the episodes that could be read.

    Args:
        recording: their steps.
        idle: (E, 2) idle steps at the start and the end of every episode.
        windows: what training will cut.
        agreement: how actions and states hang together.
        language: the instructions.
        cameras: what the cameras saw; None where pictures were not looked at.
    """

    recording: Recording
    idle: NDArray[np.int64]
    windows: Windows
    agreement: Agreement
    language: Language
    cameras: Cameras | None


@dataclass(eq=False)
class Inspection:
    """A dataset, inspected.

    Args:
        dataset: folder or Hub id, as it was given.
        findings: errors first.
        measures: None where no episode could be read.
        thresholds: what the checks went by.
    """

    dataset: str
    findings: list[Finding]
    measures: Measures | None
    thresholds: InspectionThresholds = field(default_factory=InspectionThresholds)

    @property
    def embodiment(self) -> Embodiment | None:
        return self.measures.recording.embodiment if self.measures else None

    @property
    def episodes(self) -> int:
        """Episodes that could be read."""
        return len(self.measures.recording.lengths) if self.measures else 0

    @property
    def frames(self) -> int:
        """Steps of these episodes."""
        return self.measures.recording.num_steps if self.measures else 0

    def count(self, severity: Severity) -> int:
        """Findings of a severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def exit_status(self, strict: bool = False) -> int:
        """See `findings.exit_status`."""
        return exit_status(self.findings, strict)


def inspect_dataset(
    path: str | Path,
    *,
    frames: bool = True,
    chunk_size: int = 16,
    episodes: Sequence[int] | None = None,
    embodiment: Embodiment | None = None,
    mapping: str | Path | Mapping[str, Any] | None = None,
    thresholds: InspectionThresholds | None = None,
) -> Inspection:
    """Inspects a dataset of any format that `load_trajectories` reads. Seconds for a hundred episodes.

    Args:
        path, embodiment, mapping: as for `load_trajectories`.
        frames: whether to look at pictures too: at most `thresholds.frame_budget` of them.
        chunk_size: steps of the windows that training will cut.
        episodes: inspect only these.
        thresholds: when the checks speak.

    Raises:
        FileNotFoundError: there is no such dataset. A dataset that is there and damaged is a finding.
        ValueError: `chunk_size` is below 1, or `episodes` names one that the dataset does not have.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size} must be at least 1")
    limits = thresholds or InspectionThresholds()
    read = read_leniently(path, frames=frames, episodes=episodes, embodiment=embodiment, mapping=mapping)
    if read.source is None:
        return Inspection(str(path), by_severity(read.findings), None, limits)
    measures, findings = inspect_source(read.source, chunk_size, limits, absent_frames=read.absent_frames)
    return Inspection(str(path), by_severity([*read.findings, *findings]), measures, limits)


def inspect_source(
    source: TrajectorySource,
    chunk_size: int,
    thresholds: InspectionThresholds,
    *,
    absent_frames: Mapping[str, Mapping[int, str]] | None = None,
) -> tuple[Measures, list[Finding]]:
    """All checks on trajectories that are read; pictures are looked at where they have frame readers.

    `absent_frames` is what is known to be missing, by camera and episode number. Findings come as the checks made them.
    """
    recording = Recording(source)
    looked = any(trajectory.frames is not None for trajectory in recording.trajectories)
    cameras = check_cameras(recording, absent_frames or {}, thresholds) if looked else None
    measures = Measures(
        recording=recording,
        idle=idle_steps(recording, thresholds),
        windows=count_windows(recording.lengths, chunk_size, recording.period),
        agreement=measure_agreement(recording, thresholds),
        language=measure_language(recording, cameras.pictures if cameras else {}, thresholds),
        cameras=cameras,
    )
    return measures, [
        *check_timestamps(recording, thresholds),
        *check_lengths(recording, chunk_size, thresholds),
        *check_ranges(recording, thresholds),
        *check_jumps(recording, thresholds),
        *check_idle(recording, measures.idle, thresholds),
        *check_agreement(recording, measures.agreement, thresholds),
        *check_duplicates(recording, thresholds),
        *(cameras.findings if cameras else []),
        *check_language(recording, measures.language, thresholds),
    ]


__all__ = ["Inspection", "Measures", "inspect_dataset", "inspect_source"]
