"""LeRobot v3.0 datasets: what the writer leaves on disk, what the reader makes of it, and how bad data are refused."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from priorvla.configuration.embodiment import Embodiment, FeatureStatistics
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.data.readers import load_trajectories

SIZE = (12, 16)
LENGTHS = (7, 4, 9)
TASKS = ("open the drawer", "close the door", "open the drawer")
DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"


@pytest.fixture
def embodiment() -> Embodiment:
    return Embodiment(
        name="toy_arm",
        action_names=["dx", "dy", "grip"],
        state_names=["x", "y"],
        control_rate=20,
        gripper_dims=[2],
        cameras=["front", "wrist"],
    )


def episode(length: int, seed: int, cameras: tuple[str, ...] = ("front", "wrist")) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "states": rng.normal(size=(length, 2)).astype(np.float32),
        "actions": rng.normal(size=(length, 3)).astype(np.float32),
        "images": {camera: rng.integers(0, 256, (length, *SIZE, 3), dtype=np.uint8) for camera in cameras},
    }


def write(root: Path, embodiment: Embodiment, *, images: bool = True, **options: Any) -> list[dict[str, Any]]:
    episodes = [episode(length, seed) for seed, length in enumerate(LENGTHS)]
    cameras = dict.fromkeys(embodiment.cameras, SIZE) if images else {}
    with LeRobotDatasetWriter(root, embodiment, cameras, **options) as writer:
        for number, (content, task) in enumerate(zip(episodes, TASKS, strict=True)):
            pictures = content["images"] if images else None
            assert writer.add_episode(content["states"], content["actions"], task, pictures) == number
    return episodes


def edit_parquet(file: Path, column: str, change: Any) -> None:
    """Rewrites one column of a parquet file by `change(list of its values)`; None drops it."""
    table = pq.read_table(file)
    position = table.column_names.index(column)
    if change is None:
        table = table.remove_column(position)
    else:
        values = change(table.column(column).to_pylist())
        table = table.set_column(position, column, pa.array(values))
    pq.write_table(table, file)


def edit_info(root: Path, **changes: Any) -> None:
    file = root / "meta/info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def set_item(values: list[Any], row: int, value: Any) -> list[Any]:
    return [value if i == row else old for i, old in enumerate(values)]


# Round trip


def test_numbers_tasks_and_images_come_back_exactly(tmp_path, embodiment):
    written = write(tmp_path / "ds", embodiment)
    source = load_trajectories(tmp_path / "ds", frames=True)
    assert [len(t) for t in source.trajectories] == list(LENGTHS)
    assert source.num_steps == sum(LENGTHS)
    for number, (trajectory, content) in enumerate(zip(source.trajectories, written, strict=True)):
        assert trajectory.episode_index == number
        assert trajectory.task == TASKS[number]
        assert trajectory.states.dtype == trajectory.actions.dtype == np.float32
        np.testing.assert_array_equal(trajectory.states, content["states"])
        np.testing.assert_array_equal(trajectory.actions, content["actions"])
        np.testing.assert_allclose(trajectory.timestamps, np.arange(len(trajectory)) / 20, atol=1e-6)
        assert trajectory.frames is not None
        assert trajectory.frames.cameras == ["front", "wrist"]
        for camera in ("front", "wrist"):
            order = [2, 0, 2, len(trajectory) - 1]
            np.testing.assert_array_equal(trajectory.frames.read(camera, order), content["images"][camera][order])


def test_embodiment_comes_back_with_the_statistics_of_the_written_data(tmp_path, embodiment):
    written = write(tmp_path / "ds", embodiment, images=False)
    stored = load_trajectories(tmp_path / "ds").embodiment
    actions = np.concatenate([content["actions"] for content in written])
    states = np.concatenate([content["states"] for content in written])
    assert stored == embodiment.with_statistics(states, actions)
    stats = json.loads((tmp_path / "ds/meta/stats.json").read_text())
    assert stats["action"]["q99"] == FeatureStatistics.from_values(actions).q99
    assert stats["action"]["count"] == [sum(LENGTHS)]


def test_image_statistics_are_those_of_all_frames(tmp_path, embodiment):
    written = write(tmp_path / "ds", embodiment)
    stats = json.loads((tmp_path / "ds/meta/stats.json").read_text())["observation.images.front"]
    frames = np.concatenate([content["images"]["front"] for content in written]) / 255
    np.testing.assert_allclose(np.asarray(stats["mean"])[:, 0, 0], frames.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(np.asarray(stats["std"])[:, 0, 0], frames.std((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(np.asarray(stats["q90"])[:, 0, 0], np.quantile(frames, 0.9, (0, 1, 2)), atol=0.01)
    assert stats["count"] == [sum(LENGTHS)]


def test_an_independent_reader_that_knows_only_the_format_finds_every_row(tmp_path, embodiment):
    written = write(tmp_path / "ds", embodiment, data_file_megabytes=0.001)
    root = tmp_path / "ds"
    info = json.loads((root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert info["fps"] == 20
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, sum(LENGTHS), 2)
    assert info["splits"] == {"train": "0:3"}
    assert info["features"]["action"] == {"dtype": "float32", "shape": [3], "names": ["dx", "dy", "grip"]}
    assert info["features"]["observation.images.wrist"]["shape"] == [*SIZE, 3]
    tasks = pq.read_table(root / "meta/tasks.parquet").to_pandas()
    rows = pq.read_table(root / EPISODES).to_pylist()
    assert [row["episode_index"] for row in rows] == [0, 1, 2]
    files = set()
    for row, content, task in zip(rows, written, TASKS, strict=True):
        place = info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])
        files.add(place)
        table = pq.read_table(root / place)
        table = table.filter(pc.equal(table["episode_index"], row["episode_index"]))
        assert table["index"].to_pylist() == list(range(row["dataset_from_index"], row["dataset_to_index"]))
        assert table["frame_index"].to_pylist() == list(range(row["length"]))
        assert row["tasks"] == [task]
        assert set(table["task_index"].to_pylist()) == {tasks.loc[task].task_index}
        np.testing.assert_array_equal(np.asarray(table["action"].to_pylist(), np.float32), content["actions"])
        encoded = table["observation.images.front"].to_pylist()[3]["bytes"]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(encoded))), content["images"]["front"][3])
        np.testing.assert_allclose(row["stats/action/mean"], content["actions"].mean(0), atol=1e-6)
    assert len(files) == 3, "a file size limit starts new files"
    assert len(load_trajectories(root).trajectories) == 3


def test_hugging_face_datasets_reads_the_data_files_and_decodes_their_images(tmp_path, embodiment):
    written = write(tmp_path / "ds", embodiment)
    table = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "ds" / DATA), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert table.num_rows == sum(LENGTHS)
    np.testing.assert_array_equal(np.float32(table[8]["action"]), written[1]["actions"][1])
    np.testing.assert_array_equal(np.asarray(table[8]["observation.images.wrist"]), written[1]["images"]["wrist"][1])


def test_one_dim_bodies_and_bodies_without_state_round_trip(tmp_path):
    body = Embodiment(name="slider", action_names=["x"], state_names=[], control_rate=12.5)
    actions = np.linspace(0, 1, 5, dtype=np.float32)[:, None]
    with LeRobotDatasetWriter(tmp_path / "ds", body) as writer:
        writer.add_episode(np.zeros((5, 0)), actions, "slide")
    source = load_trajectories(tmp_path / "ds")
    np.testing.assert_array_equal(source.trajectories[0].actions, actions)
    assert source.trajectories[0].states.shape == (5, 0)
    assert source.embodiment.control_rate == 12.5


def test_chosen_episodes_come_in_the_order_asked_for(tmp_path, embodiment):
    written = write(tmp_path / "ds", embodiment)
    source = load_trajectories(tmp_path / "ds", episodes=[2, 0], frames=True)
    assert [t.episode_index for t in source.trajectories] == [2, 0]
    np.testing.assert_array_equal(source.trajectories[0].actions, written[2]["actions"])
    assert source.trajectories[0].frames is not None
    np.testing.assert_array_equal(source.trajectories[0].frames.read("front", [1])[0], written[2]["images"]["front"][1])
    with pytest.raises(ValueError, match="no episode 7, the dataset has 0 to 2"):
        load_trajectories(tmp_path / "ds", episodes=[7])


def test_images_are_not_opened_unless_frames_are_asked_for(tmp_path, embodiment):
    write(tmp_path / "ds", embodiment)
    edit_parquet(
        tmp_path / "ds" / DATA, "observation.images.front", lambda rows: [{"bytes": b"no image"} for _ in rows]
    )
    assert load_trajectories(tmp_path / "ds").trajectories[0].frames is None
    frames = load_trajectories(tmp_path / "ds", frames=True).trajectories[0].frames
    assert frames is not None
    with pytest.raises(ValueError, match=r"file-000.parquet: column 'observation.images.front', row 3: not a readable"):
        frames.read("front", [3])


def test_embodiment_is_inferred_from_info_when_the_dataset_is_not_ours(tmp_path, embodiment):
    write(tmp_path / "ds", embodiment)
    (tmp_path / "ds/meta/embodiment.json").unlink()
    info = json.loads((tmp_path / "ds/meta/info.json").read_text())
    info["features"]["action"]["names"] = {"motors": [["a", "b", "c"]]}
    info["features"]["observation.state"]["names"] = None
    edit_info(tmp_path / "ds", features=info["features"], robot_type="so/101")
    inferred = load_trajectories(tmp_path / "ds").embodiment
    assert inferred.name == "so_101"
    assert inferred.action_names == ["a", "b", "c"]
    assert inferred.state_names == ["state_0", "state_1"]
    assert inferred.control_rate == 20
    assert inferred.cameras == ["front", "wrist"]
    assert inferred.action_statistics is None
    edit_info(tmp_path / "ds", robot_type="unknown")
    assert load_trajectories(tmp_path / "ds").embodiment.name == "ds", "which is no robot, whatever LeRobot calls it"


def test_a_body_that_learns_relative_actions_is_written_without_statistics_of_its_steps(tmp_path):
    names = ["x", "y"]
    body = Embodiment("arm", names, names, 20.0).learning("relative")
    with LeRobotDatasetWriter(tmp_path / "ds", body) as writer:
        writer.add_episode(np.zeros((4, 2)), np.ones((4, 2)), "look")
    assert load_trajectories(tmp_path / "ds").embodiment == body


def test_fingerprint_changes_with_any_data_and_not_with_the_place(tmp_path, embodiment):
    write(tmp_path / "ds", embodiment)
    first = load_trajectories(tmp_path / "ds").fingerprint
    shutil.copytree(tmp_path / "ds", tmp_path / "copy")
    assert load_trajectories(tmp_path / "copy").fingerprint == first
    file = tmp_path / "copy" / DATA
    content = bytearray(file.read_bytes())
    place = content.index(b"IDAT") + 30
    content[place] ^= 1
    file.write_bytes(content)
    assert load_trajectories(tmp_path / "copy").fingerprint != first, "one bit of one image"


def test_frames_of_a_rewritten_dataset_are_the_new_ones(tmp_path, embodiment):
    write(tmp_path / "ds", embodiment)
    old = load_trajectories(tmp_path / "ds", frames=True).trajectories[0].frames
    assert old is not None
    old.read("front", [0])
    content = episode(LENGTHS[0], seed=99)
    with LeRobotDatasetWriter(
        tmp_path / "ds", embodiment, dict.fromkeys(("front", "wrist"), SIZE), overwrite=True
    ) as w:
        w.add_episode(content["states"], content["actions"], "again", content["images"])
    source = load_trajectories(tmp_path / "ds", frames=True)
    assert len(source) == 1
    assert source.trajectories[0].frames is not None
    np.testing.assert_array_equal(source.trajectories[0].frames.read("front", [0]), content["images"]["front"][:1])
    assert [path.name for path in tmp_path.iterdir()] == ["ds"]


# What the reader refuses


def test_frame_requests_that_make_no_sense_are_refused(tmp_path, embodiment):
    write(tmp_path / "ds", embodiment)
    frames = load_trajectories(tmp_path / "ds", frames=True).trajectories[1].frames
    assert frames is not None
    with pytest.raises(ValueError, match=r"episode 1: no camera 'top', this episode has front, wrist"):
        frames.read("top", [0])
    for step in (-1, 4):
        with pytest.raises(ValueError, match=f"step {step} is outside the episode's 4 steps"):
            frames.read("front", [step])
    write(tmp_path / "motion", embodiment, images=False)
    with pytest.raises(ValueError, match="this dataset has no frames to read"):
        load_trajectories(tmp_path / "motion", frames=True)


BROKEN_ROWS = {
    "NaN action": (
        DATA,
        "action",
        lambda v: set_item(v, 9, [0, float("nan"), 0]),
        r"episode 1: action is nan at step 2, dim 1",
    ),
    "infinite state": (
        DATA,
        "observation.state",
        lambda v: set_item(v, 0, [float("inf"), 0]),
        "state is inf at step 0",
    ),
    "null action": (DATA, "action", lambda v: set_item(v, 5, None), "'action' is null in row 5"),
    "null in an action": (DATA, "action", lambda v: set_item(v, 5, [0, None, 0]), "'action' is null in row 5"),
    "wrong dims": (DATA, "action", lambda v: [[*x, 0] for x in v], "'action' has 4 dims in row 0, .*info.json says 3"),
    "ragged dims": (DATA, "action", lambda v: set_item(v, 6, [0, 0]), "'action' has 2 dims in row 6"),
    "words for numbers": (DATA, "timestamp", lambda v: [str(x) for x in v], "'timestamp' holds string, numbers"),
    "missing action column": (DATA, "action", None, "column 'action' is missing, the file has"),
    "missing state column": (DATA, "observation.state", None, "column 'observation.state' is missing"),
    "missing task index": (
        DATA,
        "task_index",
        lambda v: [8 for _ in v],
        "task_index 8, which the tasks in meta/ lack",
    ),
    "shuffled episodes": (DATA, "episode_index", lambda v: set_item(v, 15, 0), "episode 0 starts again in row 15"),
    "other length": (EPISODES, "length", lambda v: set_item(v, 1, 5), r"episode 1 has 4 rows, .* says length 5"),
    "zero-length episode": (EPISODES, "length", lambda v: set_item(v, 1, 0), "episode 1 has length 0: leave it out"),
    "missing meta column": (EPISODES, "data/file_index", None, "column 'data/file_index' is missing"),
    "null meta value": (EPISODES, "length", lambda v: set_item(v, 1, None), "'length' is null for episode 1"),
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_broken_rows_are_refused_naming_file_key_and_value(tmp_path, embodiment, case):
    file, column, change, message = BROKEN_ROWS[case]
    write(tmp_path / "ds", embodiment, images=False)
    edit_parquet(tmp_path / "ds" / file, column, change)
    with pytest.raises(ValueError, match=message) as caught:
        load_trajectories(tmp_path / "ds")
    assert str(tmp_path / "ds") in str(caught.value)
    assert Path(file).name in str(caught.value)


def test_an_episode_without_steps_can_be_left_out(tmp_path, embodiment):
    write(tmp_path / "ds", embodiment, images=False)
    edit_parquet(tmp_path / "ds" / EPISODES, "length", lambda v: set_item(v, 1, 0))
    assert len(load_trajectories(tmp_path / "ds", episodes=[0, 2])) == 2


@pytest.mark.parametrize("file", [DATA, EPISODES, "meta/tasks.parquet"])
def test_truncated_and_missing_files_are_named(tmp_path, embodiment, file):
    write(tmp_path / "ds", embodiment, images=False)
    path = tmp_path / "ds" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{path.name} is not a readable parquet file"):
        load_trajectories(tmp_path / "ds")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        load_trajectories(tmp_path / "ds")


BROKEN_INFO = {
    "older version": (
        {"codebase_version": "v1.6"},
        "codebase_version is 'v1.6', supported: v2.0, v2.1, v3.0; convert it",
    ),
    "unknown version": (
        {"codebase_version": "v9.0"},
        "codebase_version is 'v9.0', supported: v2.0, v2.1, v3.0; is a newer",
    ),
    "no actions": ({"features": {}}, "features has no 'action'"),
    "no rate": ({"fps": 0}, "fps is 0, expected a positive number"),
    "other rate": ({"fps": 30}, "fps is 30, embodiment 'toy_arm' is controlled at 20 Hz"),
    "incomplete": ({"total_episodes": 5}, "total_episodes is 5, meta/ lists 3 episodes"),
    "bad template": ({"data_path": "data/{episode}.parquet"}, "data_path 'data/{episode}.parquet' is not a template"),
}


@pytest.mark.parametrize("case", BROKEN_INFO)
def test_bad_info_is_refused_naming_key_and_value(tmp_path, embodiment, case):
    changes, message = BROKEN_INFO[case]
    write(tmp_path / "ds", embodiment, images=False)
    edit_info(tmp_path / "ds", **changes)
    with pytest.raises(ValueError, match=message):
        load_trajectories(tmp_path / "ds")


def test_another_body_than_the_datasets_is_refused(tmp_path, embodiment):
    write(tmp_path / "ds", embodiment, images=False)
    other = Embodiment(name="other", action_names=["a"], state_names=["x", "y"], control_rate=20)
    with pytest.raises(ValueError, match=r"features\['action'\] has 3 dims, embodiment 'other' has 1 action dims"):
        load_trajectories(tmp_path / "ds", embodiment=other)


def test_what_is_not_a_dataset_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"is not a dataset: meta/info.json \(LeRobot\) is missing, and there is no .hdf5"
    ):
        load_trajectories(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist: pass a dataset"):
        load_trajectories(tmp_path / "nowhere")
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text("{")
    with pytest.raises(ValueError, match=r"info.json is not valid JSON"):
        load_trajectories(tmp_path)


# What the writer refuses, and what it leaves behind

BAD_EPISODES = {
    "NaN action": ({"actions": np.array([[0, 0, 0], [0, np.nan, 0]])}, "'action' is nan at step 1, dim 'dy'"),
    "wrong dims": ({"actions": np.zeros((2, 4))}, r"'action' has shape \(2, 4\), expected \(T, 3\)"),
    "no steps": ({"actions": np.zeros((0, 3))}, r"'action' has no steps \(length 0\)"),
    "unequal lengths": ({"states": np.zeros((3, 2))}, "'observation.state' has 3 steps, 'action' has 2"),
    "no task": ({"task": " "}, "task is ' ', expected a sentence"),
    "missing camera": ({"images": {}}, "images of camera 'front' are missing"),
    "unknown camera": (
        {"images": {"top": np.zeros((2, *SIZE, 3), np.uint8)}},
        "images of camera 'top', the dataset has",
    ),
    "wrong size": ({"images": {"front": np.zeros((2, 5, 5, 3), np.uint8)}}, r"uint8 \(2, 5, 5, 3\), expected uint8"),
    "wrong dtype": ({"images": {"front": np.zeros((2, *SIZE, 3))}}, "are float64"),
}


@pytest.mark.parametrize("case", BAD_EPISODES)
def test_a_bad_episode_is_refused_and_nothing_is_left_behind(tmp_path, embodiment, case):
    changes, message = BAD_EPISODES[case]
    good = {
        "states": np.zeros((2, 2)),
        "actions": np.zeros((2, 3)),
        "task": "move",
        "images": {"front": np.zeros((2, *SIZE, 3), np.uint8)},
    }

    def record() -> None:
        with LeRobotDatasetWriter(tmp_path / "ds", embodiment, {"front": SIZE}) as writer:
            writer.add_episode(**good)
            writer.add_episode(**(good | changes))

    with pytest.raises(ValueError, match=message) as caught:
        record()
    assert f"{tmp_path / 'ds'}: episode 1" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_writer_goes_on_after_a_refused_episode(tmp_path, embodiment):
    with LeRobotDatasetWriter(tmp_path / "ds", embodiment) as writer:
        with pytest.raises(ValueError, match="no steps"):
            writer.add_episode(np.zeros((0, 2)), np.zeros((0, 3)), "move")
        writer.add_episode(np.zeros((2, 2)), np.ones((2, 3)), "move")
    assert len(load_trajectories(tmp_path / "ds")) == 1


def record_and_interrupt(root: Path, embodiment: Embodiment, **options: Any) -> None:
    with LeRobotDatasetWriter(root, embodiment, **options) as writer:
        writer.add_episode(np.zeros((2, 2)), np.ones((2, 3)), "move")
        raise KeyboardInterrupt


def test_an_interrupted_or_dropped_writer_leaves_nothing(tmp_path, embodiment):
    with pytest.raises(KeyboardInterrupt):
        record_and_interrupt(tmp_path / "ds", embodiment)
    assert list(tmp_path.iterdir()) == []
    dropped = LeRobotDatasetWriter(tmp_path / "ds", embodiment)
    dropped.add_episode(np.zeros((2, 2)), np.ones((2, 3)), "move")
    assert len(list(tmp_path.iterdir())) == 1
    del dropped
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_for_the_same_place_is_named(tmp_path, embodiment):
    left = tmp_path / ".ds.partial-0123abcd"
    left.mkdir()
    (tmp_path / ".other.partial-0123abcd").mkdir()
    with pytest.warns(UserWarning, match="half a dataset, of a process that was killed") as told:
        write(tmp_path / "ds", embodiment, images=False)
    assert len(told) == 1 and str(left) in str(told[0].message) and left.is_dir()


def test_a_dataset_without_episodes_is_refused(tmp_path, embodiment):
    with pytest.raises(ValueError, match="at least one episode"), LeRobotDatasetWriter(tmp_path / "ds", embodiment):
        pass
    assert list(tmp_path.iterdir()) == []


def test_existing_places_are_not_overwritten_unless_asked_and_never_when_no_dataset(tmp_path, embodiment):
    write(tmp_path / "ds", embodiment, images=False)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        LeRobotDatasetWriter(tmp_path / "ds", embodiment)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="is not a LeRobot dataset"):
        LeRobotDatasetWriter(tmp_path / "thesis", embodiment, overwrite=True)
    with pytest.raises(KeyboardInterrupt):
        record_and_interrupt(tmp_path / "ds", embodiment, overwrite=True)
    assert len(load_trajectories(tmp_path / "ds")) == 3, "the old dataset survives a failed new one"


def test_a_camera_that_the_embodiment_lacks_is_refused(tmp_path, embodiment):
    with pytest.raises(ValueError, match="'toy_arm' has no camera 'top'"):
        LeRobotDatasetWriter(tmp_path / "ds", embodiment, {"top": SIZE})


def test_a_dim_that_is_called_gripper_is_one_when_the_body_is_inferred(tmp_path):
    names = ["shoulder_pan.pos", "elbow.pos", "Gripper.pos"]
    with LeRobotDatasetWriter(tmp_path / "ds", Embodiment("arm", names, names, 20.0)) as writer:
        writer.add_episode(np.zeros((4, 3)), np.zeros((4, 3)), "Wait.")
    (tmp_path / "ds" / "meta" / "embodiment.json").unlink()
    assert load_trajectories(tmp_path / "ds").embodiment.gripper_dims == [2]
