"""Films and strips of rollouts for people: MP4, or GIF where there is no H.264 encoder; frames side by side."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

CODEC = "libx264"
STRIP_HEIGHT, STRIP_GAP = 144, 4  # pixels: six square frames fill a report's page


def write_video(path: str | Path, frames: NDArray[np.uint8], fps: float) -> Path:
    """Writes `frames` (T, h, w, 3) uint8 as an MP4 that browsers play, at `fps` frames a second.

    Odd sides are padded by a repeated row or column, as H.264 wants. Where PyAV has no H.264 encoder an animated GIF is
    written instead.

    Returns:
        the file written: `path` with the suffix `.mp4` or `.gif`.

    Raises:
        ValueError: on frames of another shape or type, no frames, or a rate that is not positive.
    """
    _check(frames)
    if not fps > 0:
        raise ValueError(f"fps must be positive (frames a second), got {fps}")
    if CODEC not in av.codecs_available:
        return _write_gif(Path(path).with_suffix(".gif"), frames, fps)
    height, width = frames.shape[1:3]
    padded = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    target = Path(path).with_suffix(".mp4")
    partial = _partial(target)
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream: Any = container.add_stream(CODEC, rate=Fraction(fps).limit_denominator(1000), options={"crf": "20"})
            stream.height, stream.width = padded.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in padded:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode())
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def film_strip(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`frames` (T, h, w, 3) side by side, (144, ·, 3), white between them; for people, who look at them together.

    Raises ValueError as `write_video`.
    """
    _check(frames)
    height, width = frames.shape[1:3]
    size = (max(1, round(width * STRIP_HEIGHT / height)), STRIP_HEIGHT)
    gap = np.full((STRIP_HEIGHT, STRIP_GAP, 3), 255, np.uint8)
    parts: list[NDArray[np.uint8]] = []
    for frame in frames:
        parts += [np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)), gap]
    return np.concatenate(parts[:-1], axis=1)


def _write_gif(target: Path, frames: NDArray[np.uint8], fps: float) -> Path:
    partial = _partial(target)
    first, *others = (Image.fromarray(frame) for frame in frames)
    try:
        duration = max(20, round(1000 / fps))  # ms; browsers slow anything faster down
        first.save(partial, "GIF", save_all=True, append_images=others, duration=duration, loop=0)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _check(frames: NDArray[np.uint8]) -> None:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must be (T, height, width, 3) uint8 with T > 0, got {frames.dtype} {frames.shape}")


def _partial(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.partial")


__all__ = ["film_strip", "write_video"]
