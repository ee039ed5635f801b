"""Films of one camera as LeRobot stores them: many episodes one after the other in each of a few H.264 files."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from .lerobot_features import CHUNK_FILES, PIXEL_FORMAT
from .lerobot_layout import VIDEO_PATH

ENCODER = "libx264"
# A keyframe every 2 frames, as LeRobot does: any frame is at most one other away. No B-frames: frames are stored in the
# order in which they are shown. The rate factor is our choice: hardly to be told from the original.
ENCODER_OPTIONS = {"g": "2", "bf": "0", "forced-idr": "1", "crf": "18", "preset": "fast"}


class CameraVideos:
    """Encodes the episodes of one camera at a constant frame rate: frame n of a file is shown at n / fps seconds.

    Every episode begins with a keyframe. One thread encodes, so that the same frames give the same bytes everywhere.

    Args:
        root: the dataset's folder.
        key: the camera's feature key.
        size: (height, width) of a frame in pixels, both even.
        fps: frames a second.
        file_bytes: an episode that would start beyond it starts the next file.

    Raises:
        ValueError: an odd side, which yuv420p cannot store.
        RuntimeError: PyAV was built without the encoder; names those that it has.
    """

    def __init__(self, root: Path, key: str, size: tuple[int, int], fps: float, file_bytes: float) -> None:
        _require_encoder()
        if size[0] % 2 or size[1] % 2:
            raise ValueError(f"{key!r} has (height, width) {size}: H.264 needs even sides, choose others or PNG images")
        self._root = root
        self._key = key
        self._size = size
        self._rate = Fraction(fps).limit_denominator(1000)
        self._file_bytes = file_bytes
        self._file_index = -1
        self._container: Any = None
        self._stream: Any = None
        self._frames_in_file = 0
        self._bytes_in_file = 0

    def add_episode(self, frames: NDArray[np.uint8]) -> dict[str, int | float]:
        """Appends `frames` (T, height, width, 3) RGB and returns the columns that say where they lie.

        These are `videos/<key>/chunk_index`, `file_index`, and from when to when (s) in that file. The file is whole
        only after `close`.
        """
        if self._container is None or self._bytes_in_file > self._file_bytes:
            self._open_next_file()
        start = self._frames_in_file
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = start + number, 1 / self._rate
            if number == 0:
                frame.pict_type = av.video.frame.PictureType.I
            self._write(self._stream.encode(frame))
        self._frames_in_file += len(frames)
        return {
            f"videos/{self._key}/chunk_index": self._file_index // CHUNK_FILES,
            f"videos/{self._key}/file_index": self._file_index % CHUNK_FILES,
            f"videos/{self._key}/from_timestamp": float(start / self._rate),
            f"videos/{self._key}/to_timestamp": float(self._frames_in_file / self._rate),
        }

    def close(self) -> None:
        """Finishes the file that is being written."""
        container, self._container = self._container, None
        if container is not None:
            with container:
                container.mux(self._stream.encode())

    def _open_next_file(self) -> None:
        self.close()
        self._file_index += 1
        self._frames_in_file = self._bytes_in_file = 0
        chunk, file = divmod(self._file_index, CHUNK_FILES)
        place = self._root / VIDEO_PATH.format(video_key=self._key, chunk_index=chunk, file_index=file)
        place.parent.mkdir(parents=True, exist_ok=True)
        self._container = av.open(str(place), "w", format="mp4")
        self._stream = self._container.add_stream(ENCODER, rate=self._rate, options=ENCODER_OPTIONS)
        self._stream.height, self._stream.width = self._size
        self._stream.pix_fmt = PIXEL_FORMAT
        self._stream.codec_context.time_base = 1 / self._rate
        self._stream.codec_context.thread_count = 1

    def _write(self, packets: list[Any]) -> None:
        self._bytes_in_file += sum(packet.size for packet in packets)
        self._container.mux(packets)


def _require_encoder() -> None:
    if ENCODER not in av.codecs_available:
        raise RuntimeError(
            f"this PyAV cannot encode H.264 ({ENCODER} is missing, its video encoders are: "
            f"{', '.join(_video_encoders())}): install PyAV's own wheel (pip install av), or write PNG images"
        )


def _video_encoders() -> list[str]:
    encoders = []
    for name in sorted(av.codecs_available):
        try:
            codec = av.Codec(name, "w")
        except ValueError:  # a decoder only
            continue
        if codec.type == "video":
            encoders.append(name)
    return encoders


__all__ = ["CameraVideos"]
