"""HDF5, NPZ and plain parquet files: known layouts, column mappings, and clear errors for everything else."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from priorvla.configuration.embodiment import Embodiment
from priorvla.training.data.readers import load_trajectories

h5py = pytest.importorskip("h5py")

LENGTHS = (5, 3, 4)


def numbers(length: int, dims: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, dims)).astype(np.float32)


def pictures(length: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (length, 8, 10, 3), dtype=np.uint8)


def write_robomimic(file: Path, *, rate: int | None = 20, lengths: tuple[int, ...] = LENGTHS) -> None:
    """Demonstrations `data/demo_1`, `demo_2`, ... of a Panda, written in an order that is not theirs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as content:
        data = content.create_group("data")
        data.attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": {"control_freq": rate} if rate else {}})
        data.attrs["problem_info"] = json.dumps({"language_instruction": "lift the cube"})
        for index in reversed(range(len(lengths))):
            demo, length = data.create_group(f"demo_{index + 8}"), lengths[index]
            demo["actions"] = numbers(length, 7, index).astype(np.float64)
            demo["states"] = numbers(length, 30, index)  # of the simulator: not the robot's
            for key, dims in (("robot0_eef_pos", 3), ("robot0_eef_quat", 4), ("robot0_gripper_qpos", 2), ("object", 9)):
                demo[f"obs/{key}"] = numbers(length, dims, index + dims)
            demo["obs/agentview_image"] = pictures(length, index)


def write_aloha(folder: Path, *, encoded: bool = False) -> None:
    """Files episode_8, episode_9, episode_10, with a camera whose images are an array or zero-padded JPEG."""
    folder.mkdir(parents=True)
    for index, length in enumerate(LENGTHS):
        with h5py.File(folder / f"episode_{index + 8}.hdf5", "w") as content:
            content["action"] = numbers(length, 14, index)
            content["observations/qpos"] = numbers(length, 14, index + 10)
            content["observations/images/top"] = encode(smooth(length)) if encoded else pictures(length, index)


def smooth(length: int) -> np.ndarray:
    """Pictures that JPEG keeps: left half red, brighter from step to step."""
    frames = np.zeros((length, 16, 16, 3), np.uint8)
    frames[:, :, :8, 0] = 100 + 20 * np.arange(length)[:, None, None]
    return frames


def encode(frames: np.ndarray) -> np.ndarray:
    encoded = []
    for frame in frames:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, "JPEG", quality=95)
        encoded.append(np.frombuffer(stream.getvalue(), np.uint8))
    longest = max(map(len, encoded)) + 7
    return np.stack([np.pad(content, (0, longest - len(content))) for content in encoded])


# HDF5


def test_robomimic_is_recognised_with_rate_instruction_and_the_robots_own_state(tmp_path):
    write_robomimic(tmp_path / "lift.hdf5")
    source = load_trajectories(tmp_path / "lift.hdf5", frames=True)
    assert [len(trajectory) for trajectory in source.trajectories] == list(LENGTHS), "demo_9 before demo_10"
    body = source.embodiment
    assert (body.name, body.action_dim, body.state_dim, body.control_rate) == ("lift", 7, 9, 20)
    assert body.cameras == ["agentview"]
    for index, trajectory in enumerate(source.trajectories):
        np.testing.assert_array_equal(trajectory.actions, numbers(LENGTHS[index], 7, index))
        state = [numbers(LENGTHS[index], dims, index + dims) for dims in (3, 4, 2)]
        np.testing.assert_array_equal(trajectory.states, np.concatenate(state, axis=1))
        np.testing.assert_allclose(trajectory.timestamps, np.arange(LENGTHS[index]) / 20)
        assert trajectory.task == "lift the cube"
        assert trajectory.source == f"{tmp_path / 'lift.hdf5'}: data/demo_{index + 8}"
        assert trajectory.frames is not None
        np.testing.assert_array_equal(
            trajectory.frames.read("agentview", [2, 0]), pictures(LENGTHS[index], index)[[2, 0]]
        )


def test_episodes_are_counted_through_the_files_of_a_folder(tmp_path):
    write_robomimic(tmp_path / "ds/task_10.hdf5", lengths=(4,))
    write_robomimic(tmp_path / "ds/task_9.hdf5", lengths=(5, 6))
    source = load_trajectories(tmp_path / "ds", episodes=[2, 0])
    assert [len(trajectory) for trajectory in source.trajectories] == [4, 5]
    assert [trajectory.episode_index for trajectory in source.trajectories] == [2, 0]
    with pytest.raises(ValueError, match="there is no episode 3, the dataset has 0 to 2"):
        load_trajectories(tmp_path / "ds", episodes=[3])


def test_files_of_other_rates_or_of_none_are_refused(tmp_path):
    write_robomimic(tmp_path / "ds/a.hdf5", rate=20)
    write_robomimic(tmp_path / "ds/b.hdf5", rate=10)
    with pytest.raises(ValueError, match=r"b.hdf5 is recorded at 10.* Hz, .*a.hdf5 at 20.*: load them apart"):
        load_trajectories(tmp_path / "ds")
    write_robomimic(tmp_path / "c.hdf5", rate=None)
    with pytest.raises(ValueError, match="the control rate is unknown"):
        load_trajectories(tmp_path / "c.hdf5")


def test_observations_that_are_not_known_must_be_chosen(tmp_path):
    write_robomimic(tmp_path / "a.hdf5")
    with h5py.File(tmp_path / "a.hdf5", "a") as content:
        for demo in content["data"].values():
            for key in [key for key in demo["obs"] if key.startswith("robot0")]:
                del demo[f"obs/{key}"]
    with pytest.raises(
        ValueError, match=r"which observations are the robot's own state\? obs has 'agentview_image', 'object'"
    ):
        load_trajectories(tmp_path / "a.hdf5")
    assert load_trajectories(tmp_path / "a.hdf5", mapping={"state": []}).embodiment.state_dim == 0
    assert load_trajectories(tmp_path / "a.hdf5", mapping={"state": "obs/object"}).embodiment.state_dim == 9


def test_aloha_is_recognised_and_asks_only_for_its_rate(tmp_path):
    write_aloha(tmp_path / "ds")
    with pytest.raises(ValueError, match=r"the control rate is unknown: give `rate` \(Hz\) or `timestamp`"):
        load_trajectories(tmp_path / "ds")
    source = load_trajectories(tmp_path / "ds", mapping={"rate": 50}, frames=True)
    assert [len(trajectory) for trajectory in source.trajectories] == list(LENGTHS)
    assert source.embodiment.cameras == ["top"]
    np.testing.assert_array_equal(source.trajectories[1].actions, numbers(3, 14, 1))
    np.testing.assert_array_equal(source.trajectories[1].states, numbers(3, 14, 11))
    assert source.trajectories[1].frames is not None
    np.testing.assert_array_equal(source.trajectories[1].frames.read("top", [2]), pictures(3, 1)[[2]])
    assert load_trajectories(tmp_path / "ds", embodiment="aloha").embodiment.action_names[0] == "left_waist"


def test_encoded_images_are_decoded_to_rgb(tmp_path):
    write_aloha(tmp_path / "ds", encoded=True)
    frames = load_trajectories(tmp_path / "ds", mapping={"rate": 50}, frames=True).trajectories[0].frames
    assert frames is not None
    shown = frames.read("top", [4, 0, 4])
    np.testing.assert_allclose(shown[:, :, :6].astype(int), smooth(5)[[4, 0, 4], :, :6], atol=8)


def test_any_other_hdf5_layout_is_read_by_a_mapping(tmp_path):
    with h5py.File(tmp_path / "runs.h5", "w") as content:
        for index in range(2):
            run = content.create_group(f"runs/{index}")
            run["cmd/arm"], run["cmd/grip"] = numbers(4, 2, index), np.arange(4)
            run["clock"] = 1e9 + np.arange(4) * 0.1
            run.attrs["words"] = f"task {index}"
    mapping = {
        "episode": "runs/*",
        "action": ["cmd/arm", "cmd/grip"],
        "timestamp": "clock",
        "task_column": "words",
        "embodiment": {"name": "my_arm", "action_names": ["x", "y", "grip"], "gripper_dims": [2]},
    }
    source = load_trajectories(tmp_path / "runs.h5", mapping=mapping)
    body = source.embodiment
    assert (body.name, body.control_rate, body.action_names, body.state_dim) == ("my_arm", 10, ["x", "y", "grip"], 0)
    assert [trajectory.task for trajectory in source.trajectories] == ["task 0", "task 1"]
    np.testing.assert_array_equal(source.trajectories[1].actions[:, 2], np.arange(4))
    np.testing.assert_allclose(source.trajectories[1].timestamps, np.arange(4) * 0.1, atol=1e-6)


def test_hdf5_without_h5py_says_what_to_install(tmp_path, monkeypatch):
    write_aloha(tmp_path / "ds")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"pip install 'priorvla\[hdf5\]'"):
        load_trajectories(tmp_path / "ds")


# NPZ


def test_npz_files_are_an_episode_each(tmp_path):
    for index, length in enumerate(LENGTHS):
        np.savez(tmp_path / f"{index}.npz", actions=numbers(length, 2, index), states=numbers(length, 3, index))
    source = load_trajectories(tmp_path, mapping={"rate": 30, "task": "Push."})
    assert [len(trajectory) for trajectory in source.trajectories] == list(LENGTHS)
    np.testing.assert_array_equal(source.trajectories[2].states, numbers(4, 3, 2))
    assert source.trajectories[0].task == "Push."
    assert source.embodiment.action_names == ["actions_0", "actions_1"]


def test_one_npz_file_holds_many_episodes_by_their_ends(tmp_path):
    ends = np.cumsum(LENGTHS)
    actions = numbers(ends[-1], 2, 0)
    words = np.array(["a", "b", "c"])
    np.savez_compressed(tmp_path / "all.npz", actions=actions, episode_ends=ends, words=words)
    source = load_trajectories(tmp_path / "all.npz", episodes=[1, 2], mapping={"rate": 10, "task_column": "words"})
    np.testing.assert_array_equal(source.trajectories[0].actions, actions[5:8])
    np.testing.assert_array_equal(source.trajectories[1].actions, actions[8:])
    assert [trajectory.task for trajectory in source.trajectories] == ["b", "c"]


def test_pickled_npz_files_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", actions=np.array([{"x": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"a.npz: 'actions' cannot be read .*: pickled objects are refused"):
        load_trajectories(tmp_path / "a.npz", mapping={"rate": 10})


@pytest.mark.parametrize("ends", [[3, 2, 5], [0, 5], [2.5, 5.0]])
def test_episode_ends_that_make_no_sense_are_refused(tmp_path, ends):
    np.savez(tmp_path / "a.npz", actions=numbers(5, 2, 0), episode_ends=np.array(ends))
    with pytest.raises(ValueError, match="'episode_ends' must hold the step after the last of every episode"):
        load_trajectories(tmp_path / "a.npz", mapping={"rate": 10})


# Parquet


def write_parquet(file: Path, episodes: list[Any], **extra: list[Any]) -> np.ndarray:
    actions = numbers(len(episodes), 2, len(episodes))
    columns = {"x": actions[:, 0], "y": actions[:, 1], "run": episodes, **extra}
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return actions


def test_parquet_columns_are_put_side_by_side_and_name_the_dims(tmp_path):
    actions = write_parquet(tmp_path / "log.parquet", ["a"] * 3 + ["b"] * 2, words=["go"] * 3 + ["stop"] * 2)
    (tmp_path / "priorvla.yaml").write_text("action: [x, y]\nepisode: run\nrate: 15\ntask_column: words\n")
    source = load_trajectories(tmp_path)
    np.testing.assert_array_equal(source.trajectories[0].actions, actions[:3])
    np.testing.assert_array_equal(source.trajectories[1].actions, actions[3:])
    assert source.embodiment.action_names == ["x", "y"]
    assert [trajectory.task for trajectory in source.trajectories] == ["go", "stop"]
    assert source.trajectories[1].source.endswith("log.parquet: episode 'b'")


def test_the_usual_columns_of_parquet_need_no_mapping(tmp_path):
    action = pa.array(numbers(4, 2, 0).tolist(), pa.list_(pa.float32(), 2))
    columns = {"action": action, "episode_index": [0, 0, 7, 7], "timestamp": [0, 0.05, 0, 0.05]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    source = load_trajectories(tmp_path / "a.parquet")
    assert [len(trajectory) for trajectory in source.trajectories] == [2, 2]
    assert source.embodiment.control_rate == 20


def test_an_episode_that_lies_in_two_files_is_refused(tmp_path):
    for name in ("a", "b"):
        write_parquet(tmp_path / f"{name}.parquet", ["same"] * 3)
    with pytest.raises(
        ValueError, match=r"episode 'same' is in .*a.parquet and in .*b.parquet: number episodes through"
    ):
        load_trajectories(tmp_path, mapping={"action": ["x", "y"], "episode": "run", "rate": 15})


def test_images_in_parquet_are_read(tmp_path):
    frames = pictures(3, 0)
    encoded = []
    for frame in frames:
        stream = io.BytesIO()
        Image.fromarray(frame).save(stream, "PNG")
        encoded.append({"bytes": stream.getvalue(), "path": None})
    write_parquet(tmp_path / "a.parquet", [0] * 3, cam=encoded)
    mapping = {"action": ["x", "y"], "rate": 10, "images": {"front": "cam"}}
    reader = load_trajectories(tmp_path / "a.parquet", mapping=mapping, frames=True).trajectories[0].frames
    assert reader is not None
    np.testing.assert_array_equal(reader.read("front", [2, 1]), frames[[2, 1]])


# What is refused

BAD_MAPPINGS = {
    "unknown key": ({"actoin": "x"}, "mapping: 'actoin' is unknown, did you mean 'action'"),
    "unknown column": ({"action": ["x", "yy"], "rate": 10}, r"column 'yy' is missing, .*\(did you mean 'y'\?\)"),
    "no action": ({"action": []}, "action names no column"),
    "no rate": ({"action": "x"}, "the control rate is unknown: give `rate`"),
    "zero rate": ({"action": "x", "rate": 0}, "rate must be positive"),
    "word for a rate": ({"action": "x", "rate": "fast"}, "mapping: rate must be a number .*got 'fast'"),
    "number for a column": ({"action": 3}, "mapping: action must be a column or a list of columns, got 3"),
    "two tasks": ({"action": "x", "task": "a", "task_column": "b"}, "are both given"),
    "milliseconds": ({"action": "x", "timestamp": "ms"}, r"timestamps are 50 apart, seconds are expected"),
    "other rate than the times": (
        {"action": "x", "timestamp": "s", "rate": 50},
        r"timestamps are of 20 Hz, rate says 50",
    ),
    "words for numbers": ({"action": "words", "rate": 10}, "'words' holds (large_)?string, numbers are needed"),
    "numbers for words": ({"action": "x", "rate": 10, "task_column": "y"}, "'y' is .*, expected text"),
    "NaN": ({"action": ["x", "hole"], "rate": 10}, r"a.parquet: 'hole' is nan at step 2"),
    "ragged": ({"action": "ragged", "rate": 10}, "'ragged' has 1 dims in row 1, row 0 has 2"),
    "unknown body": ({"action": "x", "rate": 10, "embodiment": "frnka_joint"}, "did you mean 'franka_joint'"),
    "other body": (
        {"action": "x", "rate": 10, "embodiment": {"action_names": ["a", "b"]}},
        r"action \(x\) has 1 dims, embodiment 'a' has 2 action dims",
    ),
    "other rate than the body's": (
        {"action": "x", "rate": 10, "embodiment": {"control_rate": 20}},
        "embodiment.control_rate says 20 Hz, rate says 10",
    ),
    "unknown field of a body": ({"action": "x", "rate": 10, "embodiment": {"colour": 1}}, "unknown key 'colour'"),
}


@pytest.mark.parametrize("case", BAD_MAPPINGS)
def test_mappings_that_make_no_sense_are_refused_naming_key_and_value(tmp_path, case):
    mapping, message = BAD_MAPPINGS[case]
    write_parquet(
        tmp_path / "a.parquet",
        [0] * 3,
        words=["a"] * 3,
        ms=[0, 50, 100],
        s=[0, 0.05, 0.1],
        hole=[0, 1, float("nan")],
        ragged=[[1, 2], [1], [1, 2]],
    )
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_trajectories(tmp_path / "a.parquet", mapping=mapping)


def test_unknown_layouts_say_what_was_found_and_what_is_needed(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as content:
        content["arm/torque"] = numbers(3, 2, 0)
    np.savez(tmp_path / "a.npz", steering=numbers(3, 2, 0))
    write_parquet(tmp_path / "a.parquet", [0] * 3)
    for name, found in (("a.hdf5", "'arm/torque'"), ("a.npz", "'steering'"), ("a.parquet", "'x', 'y', 'run'")):
        with pytest.raises(ValueError, match=rf"{name}: unknown layout, it has {found} but no 'action' or 'actions'"):
            load_trajectories(tmp_path / name)
    with pytest.raises(
        ValueError, match=r"a.hdf5: there is no 'torque', it has 'arm/torque' \(did you mean 'arm/torque'"
    ):
        load_trajectories(tmp_path / "a.hdf5", mapping={"action": "torque", "rate": 10})
    with pytest.raises(ValueError, match="holds files of several kinds"):
        load_trajectories(tmp_path)


def test_unequal_lengths_dims_and_images_are_refused_by_name(tmp_path):
    for name, action, state, image in (("steps", 5, 4, 5), ("images", 5, 5, 4)):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as content:
            content["action"], content["observations/qpos"] = numbers(action, 2, 0), numbers(state, 2, 0)
            content["observations/images/top"] = pictures(image, 0)
    with pytest.raises(ValueError, match=r"steps.hdf5: 'observations/qpos' has 4 steps, the action 5"):
        load_trajectories(tmp_path / "steps.hdf5", mapping={"rate": 50})
    with pytest.raises(ValueError, match=r"'observations/images/top' has 4 images, the episode has 5 actions"):
        load_trajectories(tmp_path / "images.hdf5", mapping={"rate": 50}, frames=True)
    (tmp_path / "mixed").mkdir()
    for index, dims in enumerate((2, 3)):
        np.savez(tmp_path / f"mixed/{index}.npz", actions=numbers(4, dims, 0))
    with pytest.raises(ValueError, match=r"1.npz: actions have 3 dims, those of .*0.npz have 2"):
        load_trajectories(tmp_path / "mixed", mapping={"rate": 10})


@pytest.mark.parametrize("suffix", ["hdf5", "npz", "parquet"])
def test_truncated_files_are_refused_by_name(tmp_path, suffix):
    file = tmp_path / f"a.{suffix}"
    if suffix == "hdf5":
        write_robomimic(file)
    elif suffix == "npz":
        np.savez(file, actions=numbers(500, 2, 0))
    else:
        write_parquet(file, [0] * 500)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"a.{suffix} is not a readable"):
        load_trajectories(file, mapping={"rate": 10})


def test_damage_within_a_compressed_file_is_refused_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", actions=np.zeros((500, 2)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[2000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"a.npz is not a readable NPZ file .*'actions'"):
        load_trajectories(tmp_path / "a.npz", mapping={"rate": 10})


def test_a_mapping_for_a_lerobot_dataset_is_refused(tmp_path, bodies, write_demonstrations):
    write_demonstrations(tmp_path / "ds", bodies[0], [4], images=False)
    with pytest.raises(ValueError, match=r"is a LeRobot dataset, whose meta/info.json names the columns"):
        load_trajectories(tmp_path / "ds", mapping={"action": "action"})


def test_no_images_and_no_mapping_file_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", actions=numbers(4, 2, 0))
    with pytest.raises(ValueError, match="no images are known, name them by images"):
        load_trajectories(tmp_path / "a.npz", mapping={"rate": 10}, frames=True)
    with pytest.raises(FileNotFoundError, match=r"mapping .*none.yaml does not exist"):
        load_trajectories(tmp_path / "a.npz", mapping=tmp_path / "none.yaml")


# Fingerprints and bodies


def test_a_fingerprint_changes_with_any_number_read_and_not_with_the_place(tmp_path):
    write_aloha(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    mapping = {"rate": 50}
    first = load_trajectories(tmp_path / "a", mapping=mapping)
    assert load_trajectories(tmp_path / "b", mapping=mapping).fingerprint == first.fingerprint
    with_frames = load_trajectories(tmp_path / "a", mapping=mapping, frames=True).fingerprint
    with h5py.File(tmp_path / "b/episode_9.hdf5", "a") as content:
        content["observations/images/top"][0, 0, 0, 0] ^= 1
    assert load_trajectories(tmp_path / "b", mapping=mapping).fingerprint == first.fingerprint, "no image was read"
    assert load_trajectories(tmp_path / "b", mapping=mapping, frames=True).fingerprint != with_frames
    assert load_trajectories(tmp_path / "b", mapping={**mapping, "state": []}).fingerprint != first.fingerprint
    with h5py.File(tmp_path / "b/episode_9.hdf5", "a") as content:
        content["action"][0, 0] += 1
    assert load_trajectories(tmp_path / "b", mapping=mapping).fingerprint != first.fingerprint


def test_the_body_given_must_fit_and_gives_the_rate(tmp_path):
    np.savez(tmp_path / "a.npz", actions=numbers(4, 2, 0))
    body = Embodiment(name="cart", action_names=["x", "y"], state_names=[], control_rate=25)
    source = load_trajectories(tmp_path / "a.npz", embodiment=body)
    assert source.embodiment == body
    np.testing.assert_allclose(source.trajectories[0].timestamps, np.arange(4) / 25)
    other = Embodiment(name="arm", action_names=["x"], state_names=[], control_rate=25)
    with pytest.raises(ValueError, match=r"a.npz: action \(actions\) has 2 dims, embodiment 'arm' has 1 action dims"):
        load_trajectories(tmp_path / "a.npz", embodiment=other)
    with pytest.raises(ValueError, match="embodiment 'cart' says 25 Hz, rate says 50"):
        load_trajectories(tmp_path / "a.npz", embodiment=body, mapping={"rate": 50})
