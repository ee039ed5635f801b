"""Frames of LeRobot video datasets: the right one for every step, whatever the codec, and clear errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorvla.configuration.embodiment import Embodiment
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.data.readers import load_trajectories

EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def embodiment() -> Embodiment:
    return Embodiment(
        name="toy_arm",
        action_names=["dx", "dy", "grip"],
        state_names=["x", "y"],
        control_rate=20,
        cameras=["front"],
    )


def numbered_frame(number: int) -> np.ndarray:
    """A 64 x 64 frame that shows `number` as eight grey blocks, black or white, which compression cannot confuse."""
    bits = np.array([number >> bit & 1 for bit in range(8)], dtype=np.uint8).reshape(2, 4)
    return np.repeat(np.kron(bits, np.ones((32, 16), np.uint8))[..., None] * 255, 3, axis=2)


def shown_number(frame: np.ndarray) -> int:
    bits = frame[16::32, 8::16, 0] > 127
    return int(sum(int(bit) << place for place, bit in enumerate(bits.reshape(-1))))


def write_video(file: Path, frames: int, codec: str, options: dict[str, str]) -> None:
    file.parent.mkdir(parents=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=20, options=options)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
        container.mux(stream.encode())


CODECS = {
    "h264 with B-frames": ("libx264", {"g": "12", "bf": "3"}),
    "h264, LeRobot's short groups": ("libx264", {"g": "2", "bf": "0"}),
    "h264, one open group": ("libx264", {"g": "8", "bf": "2", "x264-params": "open-gop=1:keyint=8:scenecut=0"}),
    "mpeg4": ("mpeg4", {"g": "12"}),
}


def make_video_dataset(root: Path, embodiment: Embodiment, codec: str = "mpeg4", **options: str) -> Path:
    """Turns a dataset of 110 steps in two episodes into one with a video of both episodes; returns the video."""
    with LeRobotDatasetWriter(root, embodiment) as writer:
        for length in (60, 50):
            writer.add_episode(np.zeros((length, 2)), np.ones((length, 3)), "look")
    key = "observation.images.front"
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][key] = {"dtype": "video", "shape": [64, 64, 3], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    table = pq.read_table(root / EPISODES)
    places = {"chunk_index": [0, 0], "file_index": [0, 0], "from_timestamp": [0.0, 3.0], "to_timestamp": [3.0, 5.5]}
    for name, values in places.items():
        table = table.append_column(f"videos/{key}/{name}", pa.array(values))
    pq.write_table(table, root / EPISODES)
    file = root / "videos" / key / "chunk-000/file-000.mp4"
    write_video(file, 110, codec, options or {"g": "12"})
    return file


@pytest.mark.parametrize("name", CODECS)
def test_every_video_frame_is_the_right_one_in_any_order(tmp_path, embodiment, name):
    codec, options = CODECS[name]
    make_video_dataset(tmp_path / "ds", embodiment, codec, **options)
    for trajectory, first in zip(load_trajectories(tmp_path / "ds", frames=True).trajectories, (0, 60), strict=True):
        assert trajectory.frames is not None
        length = len(trajectory)
        everything = trajectory.frames.read("front", range(length))
        assert everything.shape == (length, 64, 64, 3)
        assert [shown_number(frame) for frame in everything] == list(range(first, first + length))
        for step in range(length):
            assert shown_number(trajectory.frames.read("front", [step])[0]) == first + step
        scattered = [length - 1, 3, 3, 40, 0]
        shown = [shown_number(frame) for frame in trajectory.frames.read("front", scattered)]
        assert shown == [first + step for step in scattered]


def test_a_missing_video_is_an_error_only_when_its_frames_are_read(tmp_path, embodiment):
    video = make_video_dataset(tmp_path / "ds", embodiment)
    video.unlink()
    assert load_trajectories(tmp_path / "ds").trajectories[0].frames is None
    frames = load_trajectories(tmp_path / "ds", frames=True).trajectories[0].frames
    assert frames is not None
    with pytest.raises(FileNotFoundError, match=r"file-000.mp4: the video is missing: download it"):
        frames.read("front", [0])


def test_damaged_and_too_short_videos_are_refused(tmp_path, embodiment):
    video = make_video_dataset(tmp_path / "ds", embodiment)
    frames = load_trajectories(tmp_path / "ds", frames=True).trajectories[1].frames
    assert frames is not None
    shutil.rmtree(video.parent)
    write_video(video, 80, "mpeg4", {})
    with pytest.raises(ValueError, match=r"file-000.mp4 has no frame at 5.4500 s: it ends at 3.9500 s"):
        frames.read("front", [49])
    video.write_bytes(video.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"file-000.mp4 is not a readable video"):
        frames.read("front", [49])


def test_fingerprint_with_frames_covers_the_videos(tmp_path, embodiment):
    video = make_video_dataset(tmp_path / "ds", embodiment)
    first = load_trajectories(tmp_path / "ds", frames=True).fingerprint
    motion = load_trajectories(tmp_path / "ds").fingerprint
    shutil.rmtree(video.parent)
    write_video(video, 110, "mpeg4", {"g": "6"})
    assert load_trajectories(tmp_path / "ds", frames=True).fingerprint != first
    assert load_trajectories(tmp_path / "ds").fingerprint == motion
