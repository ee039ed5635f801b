"""LeRobot datasets whose pictures are films: every step finds its own frame, whoever reads, and none is left half."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest

from priorvla.configuration.embodiment import Embodiment
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.data.readers import load_trajectories

SIZE = (48, 64)
LENGTHS = (7, 1, 40, 5)  # odd ones too: an episode may start between two regular keyframes
KEY = "observation.images.front"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def embodiment() -> Embodiment:
    return Embodiment(
        name="toy_arm", action_names=["dx"], state_names=["x"], control_rate=20, cameras=["front", "wrist"]
    )


def picture(number: int, camera: str = "front") -> np.ndarray:
    """A smooth coloured background, and `number` as eight blocks, black or white, which compression cannot confuse."""
    height, width = SIZE
    rows, columns = np.mgrid[:height, :width]
    tint = 40 if camera == "front" else 120
    frame = np.stack([rows * 4 + 10, columns * 3, np.full(SIZE, tint)], axis=2).astype(np.uint8)
    for place in range(8):
        frame[4:12, 8 * place : 8 * place + 8] = 255 * (number >> place & 1)
    return frame


def shown_number(frame: np.ndarray) -> int:
    return sum(int(frame[8, 8 * place + 4, 1] > 127) << place for place in range(8))


def write(root: Path, body: Embodiment, cameras: tuple[str, ...] = ("front", "wrist"), **options: Any) -> None:
    first = 0
    with LeRobotDatasetWriter(root, body, dict.fromkeys(cameras, SIZE), video=True, **options) as writer:
        for length in LENGTHS:
            images = {camera: np.stack([picture(first + i, camera) for i in range(length)]) for camera in cameras}
            writer.add_episode(np.zeros((length, 1)), np.ones((length, 1)), "look", images)
            first += length


def test_every_step_finds_its_own_frame_in_any_order(tmp_path, embodiment):
    write(tmp_path / "ds", embodiment)
    first = 0
    for trajectory, length in zip(load_trajectories(tmp_path / "ds", frames=True).trajectories, LENGTHS, strict=True):
        assert trajectory.frames is not None
        assert trajectory.frames.cameras == ["front", "wrist"]
        numbers = list(range(first, first + length))
        assert [shown_number(frame) for frame in trajectory.frames.read("front", range(length))] == numbers
        assert [shown_number(frame) for frame in trajectory.frames.read("wrist", range(length)[::-1])] == numbers[::-1]
        for step in range(length):
            assert shown_number(trajectory.frames.read("front", [step])[0]) == first + step
        first += length


def test_frames_come_back_almost_as_they_were_and_each_camera_has_its_own(tmp_path, embodiment):
    write(tmp_path / "ds", embodiment)
    frames = load_trajectories(tmp_path / "ds", frames=True).trajectories[2].frames
    assert frames is not None
    for camera in ("front", "wrist"):
        read = frames.read(camera, range(40)).astype(int)
        written = np.stack([picture(8 + step, camera) for step in range(40)])
        assert read.shape == written.shape
        assert np.abs(read - written).mean() < 3
        assert np.abs(read[:, 20:, 4:-4] - written[:, 20:, 4:-4]).max() < 16  # the background, colours and all


@pytest.mark.parametrize("rate", [20, 12.5, 80])
def test_a_reader_that_knows_only_the_format_finds_every_frame_at_its_time(tmp_path, embodiment, rate):
    body = Embodiment(name="toy_arm", action_names=["dx"], state_names=["x"], control_rate=rate, cameras=["front"])
    write(tmp_path / "ds", body, cameras=("front",))
    root = tmp_path / "ds"
    info = json.loads((root / "meta/info.json").read_text())
    feature = info["features"][KEY]
    assert feature["dtype"] == "video"
    assert feature["shape"] == [*SIZE, 3]
    assert feature["names"] == ["height", "width", "channels"]
    assert feature["info"] == {
        "video.height": SIZE[0],
        "video.width": SIZE[1],
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "video.fps": rate,
        "video.channels": 3,
        "has_audio": False,
    }
    rows = pq.read_table(root / EPISODES).to_pylist()
    place = info["video_path"].format(video_key=KEY, chunk_index=0, file_index=0)
    with av.open(str(root / place)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert float(stream.average_rate) == rate
        shown = {
            round(float(frame.time) * rate, 6): shown_number(frame.to_ndarray(format="rgb24"))
            for frame in container.decode(video=0)
        }
    assert shown == {float(number): number for number in range(sum(LENGTHS))}
    for row in rows:
        assert row[f"videos/{KEY}/chunk_index"] == row[f"videos/{KEY}/file_index"] == 0
        assert row[f"videos/{KEY}/from_timestamp"] == pytest.approx(row["dataset_from_index"] / rate)
        assert row[f"videos/{KEY}/to_timestamp"] == pytest.approx(row["dataset_to_index"] / rate)
        assert row[f"stats/{KEY}/count"] == [row["length"]]
    assert KEY not in pq.read_table(root / "data/chunk-000/file-000.parquet").column_names


def test_every_episode_begins_with_a_keyframe_and_the_next_is_never_far(tmp_path, embodiment):
    write(tmp_path / "ds", embodiment)
    with av.open(str(tmp_path / "ds/videos" / KEY / "chunk-000/file-000.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keyframes = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    assert {0, 7, 8, 48} <= set(keyframes)
    assert max(np.diff(keyframes)) <= 2


def test_a_full_file_is_followed_by_the_next_and_no_episode_is_torn(tmp_path, embodiment):
    write(tmp_path / "ds", embodiment, video_file_megabytes=0.001)
    files = sorted(path.name for path in (tmp_path / "ds/videos" / KEY / "chunk-000").iterdir())
    assert len(files) > 1
    rows = pq.read_table(tmp_path / "ds" / EPISODES).to_pylist()
    assert {f"file-{row[f'videos/{KEY}/file_index']:03d}.mp4" for row in rows} == set(files)
    first = 0
    for trajectory in load_trajectories(tmp_path / "ds", frames=True).trajectories:
        assert trajectory.frames is not None
        shown = [shown_number(frame) for frame in trajectory.frames.read("front", range(len(trajectory)))]
        assert shown == list(range(first, first + len(trajectory)))
        first += len(trajectory)


def test_the_same_episodes_give_the_same_bytes(tmp_path, embodiment):
    for name in ("one", "two"):
        write(tmp_path / name, embodiment)
    film = f"videos/{KEY}/chunk-000/file-000.mp4"
    assert (tmp_path / "one" / film).read_bytes() == (tmp_path / "two" / film).read_bytes()
    one, two = (load_trajectories(tmp_path / name, frames=True).fingerprint for name in ("one", "two"))
    assert one == two


def test_numbers_and_statistics_are_those_of_a_dataset_of_images(tmp_path, embodiment):
    write(tmp_path / "film", embodiment)
    images = {camera: np.stack([picture(i, camera) for i in range(3)]) for camera in ("front", "wrist")}
    statistics = []
    for video in (False, True):
        root = tmp_path / f"video_{video}"
        with LeRobotDatasetWriter(root, embodiment, dict.fromkeys(images, SIZE), video=video) as writer:
            writer.add_episode(np.zeros((3, 1)), np.arange(3)[:, None], "look", images)
        statistics.append(json.loads((root / "meta/stats.json").read_text()))
        np.testing.assert_array_equal(load_trajectories(root).trajectories[0].actions[:, 0], [0, 1, 2])
    assert statistics[0] == statistics[1]


def record_and_interrupt(root: Path, body: Embodiment) -> None:
    with LeRobotDatasetWriter(root, body, {"front": SIZE}, video=True) as writer:
        writer.add_episode(np.zeros((2, 1)), np.ones((2, 1)), "look", {"front": np.stack([picture(0)] * 2)})
        raise KeyboardInterrupt


def test_an_interrupted_or_dropped_writer_leaves_no_film(tmp_path, embodiment):
    with pytest.raises(KeyboardInterrupt):
        record_and_interrupt(tmp_path / "ds", embodiment)
    assert list(tmp_path.iterdir()) == []
    dropped = LeRobotDatasetWriter(tmp_path / "ds", embodiment, {"front": SIZE}, video=True)
    dropped.add_episode(np.zeros((2, 1)), np.ones((2, 1)), "look", {"front": np.stack([picture(0)] * 2)})
    assert len(list(tmp_path.iterdir())) == 1
    del dropped
    assert list(tmp_path.iterdir()) == []


def test_a_refused_episode_leaves_no_gap_in_the_film(tmp_path, embodiment):
    with LeRobotDatasetWriter(tmp_path / "ds", embodiment, {"front": SIZE}, video=True) as writer:
        writer.add_episode(np.zeros((3, 1)), np.ones((3, 1)), "look", {"front": np.stack([picture(0)] * 3)})
        with pytest.raises(ValueError, match="uint8"):
            writer.add_episode(np.zeros((2, 1)), np.ones((2, 1)), "look", {"front": np.zeros((2, *SIZE, 3))})
        writer.add_episode(np.zeros((2, 1)), np.ones((2, 1)), "look", {"front": np.stack([picture(9)] * 2)})
    frames = load_trajectories(tmp_path / "ds", frames=True).trajectories[1].frames
    assert frames is not None
    assert [shown_number(frame) for frame in frames.read("front", [0, 1])] == [9, 9]


def test_what_cannot_be_encoded_is_refused_before_anything_is_written(tmp_path, embodiment, monkeypatch):
    with pytest.raises(ValueError, match=r"front.*\(47, 64\): H.264 needs even sides"):
        LeRobotDatasetWriter(tmp_path / "ds", embodiment, {"front": (47, 64)}, video=True)
    monkeypatch.setattr(av, "codecs_available", {"mpeg4", "libdav1d", "aac"})
    with pytest.raises(RuntimeError, match=r"libx264 is missing, its video encoders are: mpeg4\)"):
        LeRobotDatasetWriter(tmp_path / "ds", embodiment, {"front": SIZE}, video=True)
    assert list(tmp_path.iterdir()) == []
