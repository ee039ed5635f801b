"""Camera pictures of a simulated scene, drawn when they are first looked at and only while they are true."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


class LiveCameras:
    """The cameras of a scene that changes from moment to moment; a picture nobody looks at costs nothing.

    Args:
        names: the cameras that an observation shows; may be empty.
        draw: makes the picture (h, w, 3) of a camera as the scene is now.
    """

    def __init__(self, names: Sequence[str], draw: Callable[[str], NDArray[np.uint8]]) -> None:
        self.names = list(names)
        self._draw = draw
        self._drawn: dict[str, NDArray[np.uint8]] = {}
        self._moment = 0

    def observe(self) -> Mapping[str, NDArray[np.uint8]]:
        """Call it whenever the scene has changed: the pictures of the new moment, by camera.

        Looking at one after the next `observe` raises RuntimeError.
        """
        self._moment += 1
        self._drawn = {}
        return _Moment(self, self._moment)

    def picture(self, camera: str) -> NDArray[np.uint8]:
        """What `camera` sees now; drawn once a moment."""
        if camera not in self._drawn:
            self._drawn[camera] = self._draw(camera)
        return self._drawn[camera]

    def is_now(self, moment: int) -> bool:
        return moment == self._moment


class _Moment(Mapping[str, NDArray[np.uint8]]):
    def __init__(self, cameras: LiveCameras, moment: int) -> None:
        self._cameras = cameras
        self._moment = moment

    def __getitem__(self, camera: str) -> NDArray[np.uint8]:
        if camera not in self._cameras.names:
            raise KeyError(camera)
        if not self._cameras.is_now(self._moment):
            raise RuntimeError(
                f"picture of camera {camera!r}: the scene has moved on, look at it before the next step()"
            )
        return self._cameras.picture(camera)

    def __iter__(self) -> Iterator[str]:
        return iter(self._cameras.names)

    def __len__(self) -> int:
        return len(self._cameras.names)


__all__ = ["LiveCameras"]
