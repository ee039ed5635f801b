"""Camera frames of an episode, decoded when they are asked for: PNG images in parquet, or a video through PyAV."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .lerobot_parquet import open_parquet, read_columns

SEEK_GAP = 16  # frames; a nearer one is reached sooner by decoding on than by seeking
SEEK_BACK = (0.0, 1.0, 10.0, float("inf"))  # seconds before the wanted frame, until the decoder starts early enough


class CameraFrames(Protocol):
    """Frames of one camera in one episode."""

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]: ...


class EpisodeFrames:
    """The `FrameReader` of one episode of `length` steps: a `CameraFrames` by camera name."""

    def __init__(self, by_camera: Mapping[str, CameraFrames], length: int, source: str) -> None:
        self.cameras = list(by_camera)
        self._by_camera = dict(by_camera)
        self._length = length
        self._source = source

    def read(self, camera: str, indices: Sequence[int]) -> NDArray[np.uint8]:
        """Frames (n, h, w, 3) uint8 RGB of the steps `indices`.

        Raises ValueError on an unknown camera, no index or one out of range, a damaged image or video;
        FileNotFoundError when the camera's video is missing.
        """
        if camera not in self._by_camera:
            raise ValueError(f"{self._source}: no camera {camera!r}, this episode has {', '.join(self.cameras)}")
        steps = [int(index) for index in indices]
        if not steps:
            raise ValueError(f"{self._source}: no frame index of camera {camera!r} was asked for")
        for step in steps:
            if not 0 <= step < self._length:
                raise ValueError(f"{self._source}: step {step} is outside the episode's {self._length} steps")
        return self._by_camera[camera].read(steps)


class ParquetImages:
    """Encoded images in rows [start, start + length) of a parquet column of Hugging Face images (bytes, path)."""

    def __init__(self, file: Path, column: str, start: int, length: int) -> None:
        self._file = file
        self._column = column
        self._rows = (start, start + length)

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        changed = self._file.stat().st_mtime_ns if self._file.exists() else 0
        encoded = _encoded_images(self._file, self._column, *self._rows, changed)
        where = f"{self._file}: column {self._column!r}, row"
        frames = {index: decoded_image(encoded[index], f"{where} {self._rows[0] + index}") for index in set(indices)}
        first = frames[indices[0]]
        for index, frame in frames.items():
            if frame.shape != first.shape:
                row = self._rows[0] + index
                raise ValueError(
                    f"{self._file}: {self._column!r} is {frame.shape} in row {row}, others are {first.shape}"
                )
        return np.stack([frames[index] for index in indices])


class VideoFrames:
    """Frames of a video at given times: exact, by seeking to the keyframe before and decoding up to the frame.

    Args:
        file: the video; opened by `read` only.
        times: (T,) seconds within the video of the episode's steps.
        fps: frames a second; the frame taken lies within half a frame of its time, or it is an error.
    """

    def __init__(self, file: Path, times: NDArray[np.float64], fps: float) -> None:
        self._file = file
        self._times = times
        self._tolerance = 0.5 / fps

    def read(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        if not self._file.is_file():
            raise FileNotFoundError(
                f"{self._file}: the video is missing: download it, choose episodes that have theirs (episodes=), or "
                "read the dataset without frames (frames=False)"
            )
        import av

        times, inverse = np.unique(self._times[list(indices)], return_inverse=True)
        try:
            with av.open(str(self._file)) as container:
                if not container.streams.video:
                    raise ValueError(f"{self._file} holds no video stream: download or record it again")
                frames = list(self._decode(container, times.tolist()))
        except av.FFmpegError as error:
            raise ValueError(f"{self._file} is not a readable video ({error}): download or record it again") from error
        return np.stack(frames)[inverse.reshape(-1)]

    def _decode(self, container: Any, times: list[float]) -> Iterator[NDArray[np.uint8]]:
        """Frames at `times`, which ascend."""
        decoded = self._from(container, times[0])
        now, frame = next(decoded, (-np.inf, None))
        for time in times:
            if time - now > SEEK_GAP * 2 * self._tolerance:
                decoded = self._from(container, time)
                now, frame = next(decoded, (-np.inf, None))
            while now < time - self._tolerance:
                last = now
                now, frame = next(decoded, (np.inf, None))
                if frame is None:
                    raise ValueError(f"{self._file} has no frame at {time:.4f} s: it ends at {last:.4f} s")
            if frame is None or now > time + self._tolerance:
                raise ValueError(f"{self._file} has no frame at {time:.4f} s: the nearest is at {now:.4f} s")
            yield frame.to_ndarray(format="rgb24")

    def _from(self, container: Any, time: float) -> Iterator[tuple[float, Any]]:
        """(seconds, frame) from a keyframe at or before `time` on.

        A container may seek by decoding time, which B-frames put before the time of display: a first frame that comes
        too late means to seek further back.
        """
        stream = container.streams.video[0]
        start = stream.start_time or 0
        decoded: Iterator[Any] = iter(())
        for back in SEEK_BACK:
            offset = max(0.0, time - back)
            container.seek(start + int(offset / stream.time_base), stream=stream)
            decoded = container.decode(stream)
            first = next(decoded, None)
            if first is None:
                continue
            decoded = chain([first], decoded)
            if offset == 0 or self._seconds(first, stream, start) <= time + self._tolerance:
                break
        for frame in decoded:
            if frame.pts is not None:
                yield self._seconds(frame, stream, start), frame

    @staticmethod
    def _seconds(frame: Any, stream: Any, start: int) -> float:
        return float((frame.pts - start) * stream.time_base)


def decoded_image(content: bytes | None, where: str) -> NDArray[np.uint8]:
    """A PNG, JPEG, ... image as (h, w, 3) RGB. Raises ValueError naming `where` when there is none or it is damaged."""
    if content is None:
        raise ValueError(f"{where}: the image has no bytes: write the dataset with its images embedded")
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{where}: not a readable image ({error}): record the episode again") from error


@lru_cache(maxsize=4)
def _encoded_images(file: Path, column: str, start: int, stop: int, changed: int) -> list[bytes | None]:
    """Encoded images of the rows [start, stop), from their row groups only; `changed` tells a rewritten file."""
    groups: list[int] = []
    first_row = position = 0
    with open_parquet(file) as parquet:
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if position < stop and position + rows > start:
                first_row = first_row if groups else position
                groups.append(group)
            position += rows
    images = read_columns(file, [column], groups).column(column).slice(start - first_row, stop - start).to_pylist()
    return [image["bytes"] if isinstance(image, dict) else image for image in images]


__all__ = ["CameraFrames", "EpisodeFrames", "ParquetImages", "VideoFrames", "decoded_image"]
