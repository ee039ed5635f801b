"""LeRobot v2.1 and v2.0, one parquet file and one video an episode: a synthetic dataset, and a real one if present."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from priorvla.training.data.readers import load_trajectories

DATA = Path(os.environ.get("PRIORVLA_TEST_DATA", Path(__file__).parents[2] / "shared/data"))
G1 = DATA / "unitree_g1"
needs_g1 = pytest.mark.skipif(not G1.is_dir(), reason=f"{G1} is absent")
LENGTHS = (6, 4, 5)
CAMERA = "observation.images.cam"
TASKS = ("open the drawer", "close the door")


def write_v21(root: Path, *, version: str = "v2.1", state: bool = True, video: bool = True) -> list[np.ndarray]:
    """A dataset of three episodes, two to a chunk, as lerobot 0.2 wrote them; returns their actions (T, 3)."""
    rng = np.random.default_rng(0)
    features: dict[str, Any] = {
        "action": {"dtype": "float32", "shape": [3], "names": [["left", "right", "grip"]]},
        "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    }
    if state:
        features["observation.state"] = {"dtype": "float32", "shape": [2], "names": {"y": 1, "x": 0}}
    if video:
        features[CAMERA] = {"dtype": "video", "shape": [64, 64, 3], "names": None}
    info = {
        "codebase_version": version,
        "robot_type": "old_arm",
        "fps": 10,
        "total_episodes": len(LENGTHS),
        "chunks_size": 2,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": features,
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    rows = [{"episode_index": i, "tasks": [TASKS[i % 2]], "length": length} for i, length in enumerate(LENGTHS)]
    write_lines(root / "meta/episodes.jsonl", rows)
    write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(TASKS)])
    actions = []
    for index, length in enumerate(LENGTHS):
        actions.append(rng.normal(size=(length, 3)).astype(np.float32))
        columns = {
            "action": pa.array(actions[-1].tolist(), pa.list_(pa.float32())),
            "timestamp": pa.array(np.arange(length, dtype=np.float32) / 10),
            "episode_index": pa.array([index] * length),
            "task_index": pa.array([index % 2] * length),
        }
        if state:
            columns["observation.state"] = pa.array((actions[-1][:, :2] + 1).tolist(), pa.list_(pa.float32()))
        file = root / f"data/chunk-{index // 2:03d}/episode_{index:06d}.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), file)
        if video:
            write_video(video_file(root, index), length, brightness=40 + 60 * index)
    return actions


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def video_file(root: Path, index: int) -> Path:
    return root / f"videos/chunk-{index // 2:03d}/{CAMERA}/episode_{index:06d}.mp4"


def write_video(file: Path, frames: int, brightness: int) -> None:
    """Frame t is a grey of `brightness` + 5 t."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for step in range(frames):
            grey = np.full((64, 64, 3), brightness + 5 * step, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_every_episode_comes_from_its_own_files(tmp_path, version):
    written = write_v21(tmp_path / "ds", version=version)
    source = load_trajectories(tmp_path / "ds", frames=True)
    assert [len(trajectory) for trajectory in source.trajectories] == list(LENGTHS)
    for index, trajectory in enumerate(source.trajectories):
        np.testing.assert_array_equal(trajectory.actions, written[index])
        np.testing.assert_array_equal(trajectory.states, written[index][:, :2] + 1)
        assert trajectory.task == TASKS[index % 2]
        assert trajectory.source.endswith(f"chunk-{index // 2:03d}/episode_{index:06d}.parquet")
        assert trajectory.frames is not None
        shown = trajectory.frames.read("cam", [3, 0]).mean((1, 2, 3))
        np.testing.assert_allclose(shown, [55 + 60 * index, 40 + 60 * index], atol=3)


def test_the_body_is_inferred_from_info(tmp_path):
    write_v21(tmp_path / "ds")
    body = load_trajectories(tmp_path / "ds").embodiment
    assert (body.name, body.control_rate, body.cameras) == ("old_arm", 10, ["cam"])
    assert body.action_names == ["left", "right", "grip"], "names may be nested lists"
    assert body.state_names == ["x", "y"], "or places by name"


def test_a_dataset_without_states_is_read(tmp_path):
    write_v21(tmp_path / "ds", state=False)
    source = load_trajectories(tmp_path / "ds")
    assert source.embodiment.state_dim == 0
    assert source.trajectories[0].states.shape == (LENGTHS[0], 0)


def test_actions_are_read_without_any_video_and_its_frames_are_refused_by_name(tmp_path):
    write_v21(tmp_path / "ds")
    video_file(tmp_path / "ds", 1).unlink()
    assert len(load_trajectories(tmp_path / "ds")) == 3
    trajectories = load_trajectories(tmp_path / "ds", frames=True).trajectories
    assert trajectories[0].frames is not None
    assert trajectories[0].frames.read("cam", [0]).shape == (1, 64, 64, 3)
    assert trajectories[1].frames is not None
    with pytest.raises(FileNotFoundError, match=r"episode_000001.mp4: the video is missing: .*episodes="):
        trajectories[1].frames.read("cam", [0])


def test_chosen_episodes_need_no_other_file(tmp_path):
    written = write_v21(tmp_path / "ds")
    whole = load_trajectories(tmp_path / "ds", episodes=[2]).fingerprint
    for file in sorted((tmp_path / "ds/data").rglob("*.parquet"))[:2]:
        file.unlink()
    source = load_trajectories(tmp_path / "ds", episodes=[2])
    np.testing.assert_array_equal(source.trajectories[0].actions, written[2])
    assert source.fingerprint == whole, "what is not read does not count"
    with pytest.raises(FileNotFoundError, match=r"episode_000000.parquet is missing"):
        load_trajectories(tmp_path / "ds")


DAMAGE = {
    "broken line": ("meta/episodes.jsonl", '{"episode_index": 0', r"episodes.jsonl, line 1 is not valid JSON"),
    "no length": ("meta/episodes.jsonl", '{"episode_index": 0}', r"episodes.jsonl, line 1: key 'length' is missing"),
    "word for a number": (
        "meta/episodes.jsonl",
        '{"episode_index": "a", "length": 6}',
        "episode_index is 'a' for episode 'a', expected a whole number",
    ),
    "other length": (
        "meta/episodes.jsonl",
        '{"episode_index": 0, "length": 7}\n{"episode_index": 1, "length": 4}\n{"episode_index": 2, "length": 5}',
        r"episode 0 has 6 rows, .*episodes.jsonl says length 7",
    ),
    "too few episodes": ("meta/episodes.jsonl", '{"episode_index": 0, "length": 6}', "total_episodes is 3"),
    "unknown task": (
        "meta/tasks.jsonl",
        '{"task_index": 0, "task": "x"}',
        "task_index 1, which the tasks in meta/ lack",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_metadata_are_refused_naming_file_and_line(tmp_path, case):
    file, content, message = DAMAGE[case]
    write_v21(tmp_path / "ds", video=False)
    (tmp_path / "ds" / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_trajectories(tmp_path / "ds")


def test_missing_metadata_and_bad_templates_are_refused(tmp_path):
    write_v21(tmp_path / "ds", video=False)
    info = json.loads((tmp_path / "ds/meta/info.json").read_text())
    (tmp_path / "ds/meta/info.json").write_text(json.dumps(info | {"data_path": "data/{chunk_index}.parquet"}))
    with pytest.raises(
        ValueError, match=r"data_path 'data/{chunk_index}.parquet' is not a template like 'data/chunk-{ep"
    ):
        load_trajectories(tmp_path / "ds")
    (tmp_path / "ds/meta/tasks.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"tasks.jsonl is missing"):
        load_trajectories(tmp_path / "ds")


@needs_g1
def test_the_real_unitree_g1_loads_without_its_missing_videos():
    source = load_trajectories(G1)
    body = source.embodiment
    assert (len(source), source.num_steps) == (100, 35_965)
    assert (body.action_dim, body.state_dim, body.control_rate) == (26, 26, 30)
    assert body.action_names[0] == "kLeftShoulderPitch"
    assert {trajectory.task for trajectory in source.trajectories} == {"Pick up the yellow bottle on the table."}


@needs_g1
def test_the_real_unitree_g1_shows_the_frames_it_has():
    here, absent = load_trajectories(G1, episodes=[29, 0], frames=True).trajectories
    assert here.frames is not None
    assert absent.frames is not None
    frames = here.frames.read("cam_high", [0, len(here) - 1])
    assert frames.shape == (2, 480, 640, 3)
    assert frames.std() > 10, "a picture, not a plain colour"
    with pytest.raises(FileNotFoundError, match=r"cam_high/episode_000000.mp4: the video is missing"):
        absent.frames.read("cam_high", [0])
