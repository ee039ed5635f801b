"""Datasets on the Hub: what is downloaded is what is read, and offline nothing is asked for. Against a loopback Hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from priorvla.configuration.embodiment import Embodiment
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.data.readers import load_trajectories

KEY = "observation.images.front"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def write_v30(root: Path, body: Embodiment, episodes: int = 2) -> None:
    """A v3.0 dataset with a data file an episode, and beside them what a reader of motion has no use for."""
    with LeRobotDatasetWriter(root, body, data_file_megabytes=1e-4) as writer:
        for episode in range(episodes):
            writer.add_episode(np.zeros((5, body.state_dim)), np.full((5, body.action_dim), episode), "look")
    (root / "videos").mkdir()
    (root / "videos/big.mp4").write_bytes(b"a video")
    (root / "README.md").write_text("card")


def write_v21(root: Path, body: Embodiment, episodes: int = 3) -> None:
    """The same as v2.1, where every episode has a parquet file and a (fake) video of its own."""
    write_v30(root, body, episodes)
    for index, file in enumerate(sorted((root / "data").rglob("*.parquet"))):
        file.rename(root / f"data/chunk-000/episode_{index:06d}.parquet")
        video = root / VIDEO_PATH.format(episode_chunk=0, video_key=KEY, episode_index=index)
        video.parent.mkdir(parents=True, exist_ok=True)
        video.write_bytes(b"a video")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][KEY] = {"dtype": "video", "shape": [8, 8, 3], "names": None}
    data_path = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info |= {"codebase_version": "v2.1", "data_path": data_path, "video_path": VIDEO_PATH}
    (root / "meta/info.json").write_text(json.dumps(info))
    rows = [{"episode_index": index, "length": 5, "tasks": ["look"]} for index in range(episodes)]
    (root / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "look"}))
    (root / "meta/tasks.parquet").unlink()
    shutil.rmtree(root / "meta/episodes")


PROGRAM = """
import json, sys
from priorvla.training.data.readers import load_trajectories
for name, options in json.loads(sys.argv[1]):
    try:
        source = load_trajectories(name, **options)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
    else:
        episodes = [trajectory.episode_index for trajectory in source.trajectories]
        told = {"episodes": episodes, "fingerprint": source.fingerprint, "root": str(source.root)}
        print(json.dumps({**told, "body": source.embodiment.name}))
"""


def load(hub: Any, cache: Path, *calls: tuple[str, dict[str, Any]], **settings: str) -> list[dict[str, Any]]:
    """What `load_trajectories` gives for calls, in a process of their own: the Hub's settings are read at import."""
    cache.mkdir(exist_ok=True)
    environment = os.environ | hub.settings(cache) | settings
    command = [sys.executable, "-c", PROGRAM, json.dumps(calls)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=cache.parent)
    return [json.loads(line) for line in result.stdout.splitlines()]


def downloads(hub: Any) -> list[str]:
    """Names of the files that were asked for."""
    return sorted({Path(line.partition(" ")[2]).name for line in hub.requests if "/resolve/" in line})


def test_motion_is_read_without_a_request_for_any_video(tmp_path, loopback_hub, bodies):
    folder = loopback_hub.repository("datasets", "somebody/toy")
    write_v30(folder, bodies[0])
    (loaded,) = load(loopback_hub, tmp_path / "cache", ("somebody/toy", {}))
    assert loaded["episodes"] == [0, 1]
    assert loaded["fingerprint"] == load_trajectories(folder).fingerprint, "the Hub's copy is the same dataset"
    assert "file-001.parquet" in downloads(loopback_hub)
    assert not [line for line in loopback_hub.requests if "mp4" in line or "README" in line]


def test_a_robot_without_a_name_is_called_like_its_dataset_and_not_like_a_commit(tmp_path, loopback_hub, bodies):
    folder = loopback_hub.repository("datasets", "somebody/toy")
    write_v30(folder, bodies[0])
    (folder / "meta/embodiment.json").unlink()
    info = json.loads((folder / "meta/info.json").read_text())
    (folder / "meta/info.json").write_text(json.dumps({**info, "robot_type": None}))
    (loaded,) = load(loopback_hub, tmp_path / "cache", ("somebody/toy", {}))
    assert loaded["body"] == "toy"


def test_chosen_episodes_cost_only_their_files(tmp_path, loopback_hub, bodies):
    write_v21(loopback_hub.repository("datasets", "somebody/old"), bodies[0])
    few = ("somebody/old", {"episodes": [2, 0]})
    (first,) = load(loopback_hub, tmp_path / "cache", few)
    assert first["episodes"] == [2, 0]
    data = ["episode_000000.parquet", "episode_000002.parquet"]
    assert [name for name in downloads(loopback_hub) if not name.endswith(("json", "jsonl"))] == data
    whole, again = load(loopback_hub, tmp_path / "cache", ("somebody/old", {}), few)
    assert whole["episodes"] == [0, 1, 2]
    assert again == first, "what else lies in the cache makes no difference"


def test_frames_bring_the_videos_of_the_chosen_episodes(tmp_path, loopback_hub, bodies):
    write_v21(loopback_hub.repository("datasets", "somebody/old"), bodies[0])
    (loaded,) = load(loopback_hub, tmp_path / "cache", ("somebody/old", {"episodes": [1], "frames": True}))
    assert [name for name in downloads(loopback_hub) if name.endswith("mp4")] == ["episode_000001.mp4"]
    assert (Path(loaded["root"]) / VIDEO_PATH.format(episode_chunk=0, video_key=KEY, episode_index=1)).is_file()


def test_a_dataset_is_read_at_the_revision_that_is_asked_for(tmp_path, loopback_hub, bodies):
    write_v30(loopback_hub.repository("datasets", "somebody/toy"), bodies[0])
    (newest,) = load(loopback_hub, tmp_path / "cache", ("somebody/toy", {}))
    commit = Path(newest["root"]).name
    calls = [(f"somebody/toy@{revision}", {}) for revision in (commit, "main", "another-branch")]
    *same, refused = load(loopback_hub, tmp_path / "cache", *calls)
    assert same == [newest, newest]
    assert refused["error"].startswith("FileNotFoundError: somebody/toy@another-branch is neither a folder here nor")


def test_array_files_come_with_their_mapping(tmp_path, loopback_hub):
    folder = loopback_hub.repository("datasets", "somebody/arrays")
    folder.mkdir(parents=True)
    np.savez(folder / "one.npz", steering=np.zeros((4, 2)))
    (folder / "priorvla.yaml").write_text("action: steering\nrate: 10\n")
    (folder / "film.mp4").write_bytes(b"a video")
    (loaded,) = load(loopback_hub, tmp_path / "cache", ("somebody/arrays", {}))
    assert loaded["body"] == "arrays", "and not the commit, after which the folder is called"
    assert loaded["episodes"] == [0]
    assert downloads(loopback_hub) == ["one.npz", "priorvla.yaml"]


def test_offline_a_cached_dataset_is_read_without_calling_the_hub(tmp_path, loopback_hub, bodies):
    """What lerobot#4131 and #1792 ask for."""
    write_v21(loopback_hub.repository("datasets", "somebody/old"), bodies[0])
    calls = [("somebody/old", {}), ("somebody/old", {"episodes": [1]})]
    online = load(loopback_hub, tmp_path / "cache", *calls)
    loopback_hub.requests.clear()
    unknown = ("somebody/unknown", {})
    *offline, refused = load(loopback_hub, tmp_path / "cache", *calls, unknown, HF_HUB_OFFLINE="1")
    assert offline == online
    assert refused["error"].startswith("FileNotFoundError: somebody/unknown is neither a folder here nor")
    assert loopback_hub.requests == []


def test_a_folder_here_is_no_hub_id_and_an_unknown_id_is_refused(tmp_path, loopback_hub, bodies):
    write_v30(tmp_path / "somebody/toy", bodies[0])
    here, refused = load(loopback_hub, tmp_path / "cache", ("somebody/toy", {}), ("somebody/nothing", {}))
    assert here["episodes"] == [0, 1]
    assert refused["error"].startswith("FileNotFoundError: somebody/nothing is neither a folder here nor could it be")
    assert loopback_hub.requests
    assert all("somebody/nothing" in line for line in loopback_hub.requests)
