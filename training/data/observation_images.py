"""The images that windows begin with: which cameras a body has to have, and how a batch of steps is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .trajectory import FrameReader, TrajectorySource
from .trajectory_dataset import TrajectoryDataset


class ObservationImages:
    """The images of some sources' trajectories, one after the other, by trajectory and step, as a backbone wants them.

    Cameras and their order are those of the processor's embodiment, as at inference; a dataset's others are not read.
    Frame readers open their files when they read, so that it travels to other processes.

    Args:
        sources: loaded with frames.
        processor: prepares the images.

    Raises:
        ValueError: when a dataset was loaded without frames or lacks a camera, or an embodiment has none.
    """

    def __init__(self, sources: Sequence[TrajectorySource], processor: PriorVLAProcessor) -> None:
        self._processor = processor
        self._bodies: list[str] = []
        self._cameras: list[list[str]] = []
        self._frames: list[FrameReader] = []
        for source in sources:
            cameras = processor.embodiment(source.embodiment.name).cameras
            frames = _readers(source, cameras)
            self._bodies += [source.embodiment.name] * len(frames)
            self._cameras += [cameras] * len(frames)
            self._frames += frames
        self._num_cameras = max(map(len, self._cameras), default=0)

    def prepared(self, trajectory: Tensor, step: Tensor) -> dict[str, Tensor]:
        """`pixel_values` (B, C, 3, h, w) and `pixel_attention_mask` (B, C) of `step` of `trajectory`, both (B,).

        C is that of the body with the most cameras, among those of the sources.
        """
        images = self._read(trajectory.numpy(), step.numpy())
        bodies = [self._bodies[owner] for owner in trajectory.tolist()]
        inputs = self._processor(embodiment=bodies, images=images)
        return {key: inputs[key][:, : self._num_cameras] for key in ("pixel_values", "pixel_attention_mask")}

    def _read(self, trajectory: NDArray[Any], step: NDArray[Any]) -> list[dict[str, NDArray[np.uint8]]]:
        """B times camera -> (h, w, 3); a trajectory's steps are read at once, in their order."""
        images: list[dict[str, NDArray[np.uint8]]] = [{} for _ in step]
        for owner in np.unique(trajectory):
            rows = np.flatnonzero(trajectory == owner)
            for camera in self._cameras[owner]:
                for row, image in zip(rows, self._frames[owner].read(camera, step[rows].tolist()), strict=True):
                    images[row][camera] = image
        return images


def require_same_trajectories(windows: TrajectoryDataset, sources: Sequence[TrajectorySource]) -> None:
    """Raises ValueError unless `windows` are cut from the trajectories of `sources`, in that order."""
    found = [len(trajectory) for source in sources for trajectory in source.trajectories]
    if found != windows.store.episodes.length.tolist():
        raise ValueError(
            f"windows are over {len(windows.store)} trajectories, the sources have {len(found)}, or they differ in "
            "length or order: pass the sources that the windows were made from, in the same order"
        )


def _readers(source: TrajectorySource, cameras: Sequence[str]) -> list[FrameReader]:
    if not cameras:
        raise ValueError(
            f"{source.root}: embodiment {source.embodiment.name!r} has no cameras in the checkpoint, so that there is "
            "nothing to see with: name them in its `cameras`"
        )
    readers = []
    for trajectory in source.trajectories:
        if trajectory.frames is None:
            raise ValueError(f"{source.root} was loaded without frames: use load_trajectories(..., frames=True)")
        if missing := [camera for camera in cameras if camera not in trajectory.frames.cameras]:
            raise ValueError(
                f"{trajectory.source}: episode {trajectory.episode_index} has no camera {missing[0]!r}, which "
                f"embodiment {source.embodiment.name!r} needs; it has {', '.join(trajectory.frames.cameras) or 'none'}"
            )
        readers.append(trajectory.frames)
    return readers


__all__ = ["ObservationImages", "require_same_trajectories"]
