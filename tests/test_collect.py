"""Demonstrations collected into a dataset: solved, seeded, clean labels, whole or not there at all."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if find_spec("metaworld") is None:
    pytest.skip("needs the extra 'metaworld'", allow_module_level=True)
from priorvla.configuration.embodiment import Embodiment
from priorvla.deployment.collect import collect, load_collection_summary
from priorvla.deployment.collection_card import collection_origin
from priorvla.deployment.environments import make_environment
from priorvla.hub_cards.dataset_card import create_dataset_card
from priorvla.training.data.lerobot_writer import LeRobotDatasetWriter
from priorvla.training.data.picture_interval import picture_interval
from priorvla.training.data.readers import load_trajectories

TASKS = ["handle-press", "coffee-button"]  # the experts' shortest


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, two demonstrations each, with small pictures, made by one process."""
    folder = tmp_path_factory.mktemp("collected") / "dataset"
    return collect(folder, TASKS, 2, seed=5, num_workers=1, image_size=32)


def test_the_dataset_has_every_task_with_its_instruction(dataset: Path) -> None:
    source = load_trajectories(dataset)
    instructions = [make_environment("metaworld", task, render=False).instruction for task in TASKS]
    assert [trajectory.task for trajectory in source.trajectories] == [text for text in instructions for _ in range(2)]
    assert source.embodiment.name == "metaworld_sawyer"
    assert source.embodiment.control_rate == 80
    assert source.embodiment.state_statistics is not None
    summary = load_collection_summary(dataset)
    assert summary.episodes == 4
    assert summary.frames == sum(len(trajectory.actions) for trajectory in source.trajectories)
    assert set(summary.success_rates) == set(TASKS)
    assert all(0 < rate <= 1 for rate in summary.success_rates.values())
    card = (dataset / "README.md").read_text(encoding="utf-8")
    assert "](motion.png)" in card and (dataset / "motion.png").is_file()
    assert "metaworld 3." in card and "| noise | 0.15 |" in card and "by 1 cm a unit" in card
    assert "Only episodes that solve" in card and "| handle-press |" in card and "metaworld_sawyer" in card


def test_a_replayed_episode_matches_states_labels_and_pictures(dataset: Path) -> None:
    source = load_trajectories(dataset, frames=True)
    start = load_collection_summary(dataset).starts[0]
    assert start["noise"] == 0
    environment = make_environment("metaworld", start["task"], image_size=32)
    observation, _ = environment.reset(seed=start["start_seed"])
    trajectory = source.trajectories[0]
    assert trajectory.frames is not None
    pictures = trajectory.frames.read("corner2", range(len(trajectory.actions)))
    solved_at = None
    for step, action in enumerate(trajectory.actions):
        np.testing.assert_array_equal(observation["state"], trajectory.states[step])
        np.testing.assert_array_equal(environment.expert_action(), action)
        if step % 10 == 0:
            np.testing.assert_array_equal(observation["images"]["corner2"], pictures[step])
        observation, _, _, _, info = environment.step(action)
        if info["success"] and solved_at is None:
            solved_at = step
    environment.close()
    assert solved_at == len(trajectory.actions) - 1 - 8  # eight steps are kept after success


def test_every_second_demonstration_is_noisy_and_its_labels_are_what_the_expert_would_do(dataset: Path) -> None:
    starts = load_collection_summary(dataset).starts
    assert [start["noise"] for start in starts] == [0, 0.15, 0, 0.15]
    trajectory = load_trajectories(dataset).trajectories[1]
    environment = make_environment("metaworld", starts[1]["task"], render=False)
    environment.reset(seed=starts[1]["start_seed"])
    np.testing.assert_array_equal(environment.expert_action(), trajectory.actions[0])
    observation, *_ = environment.step(trajectory.actions[0])
    environment.close()
    assert (observation["state"] != trajectory.states[1]).any()  # what was executed was another action
    assert np.abs(trajectory.actions).max() <= 1


def test_two_processes_and_no_pictures_give_the_same_motion(dataset: Path, tmp_path: Path) -> None:
    other = collect(tmp_path / "motion", TASKS, 2, seed=5, num_workers=2, images=False)
    for one, two in zip(load_trajectories(dataset).trajectories, load_trajectories(other).trajectories, strict=True):
        np.testing.assert_array_equal(one.states, two.states)
        np.testing.assert_array_equal(one.actions, two.actions)
        assert one.task == two.task
    assert load_collection_summary(other).starts == load_collection_summary(dataset).starts
    assert sorted(path.name for path in tmp_path.iterdir()) == ["motion"]


def test_the_same_call_gives_the_same_dataset_byte_for_byte(dataset: Path, tmp_path: Path) -> None:
    again = collect(tmp_path / "again", TASKS, 2, seed=5, num_workers=1, image_size=32)
    assert load_trajectories(again, frames=True).fingerprint == load_trajectories(dataset, frames=True).fingerprint


def test_a_collection_that_is_stopped_before_its_summary_leaves_no_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LeRobotDatasetWriter, "add_file", stop)
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "none", TASKS[:1], 1, num_workers=1, images=False)
    assert list(tmp_path.iterdir()) == []


def test_a_task_alone_gives_the_same_demonstrations_as_among_others(dataset: Path, tmp_path: Path) -> None:
    alone = collect(tmp_path / "alone", TASKS[1:], 1, seed=5, num_workers=1, images=False)
    np.testing.assert_array_equal(
        load_trajectories(alone).trajectories[0].actions, load_trajectories(dataset).trajectories[2].actions
    )


def test_a_slower_camera_shows_a_picture_until_the_next_and_changes_no_motion(dataset: Path, tmp_path: Path) -> None:
    slow = collect(tmp_path / "slow", TASKS[1:], 1, seed=5, num_workers=1, image_size=32, image_every=4)
    one, other = (load_trajectories(folder, frames=True).trajectories for folder in (dataset, slow))
    np.testing.assert_array_equal(one[2].actions, other[0].actions)
    assert one[2].frames is not None and other[0].frames is not None
    steps = range(len(one[2].actions))
    fresh = one[2].frames.read("corner2", steps)
    np.testing.assert_array_equal(other[0].frames.read("corner2", steps), [fresh[step - step % 4] for step in steps])
    assert picture_interval(dataset) == 1 and picture_interval(slow) == 4
    summary = load_collection_summary(slow)
    assert (summary.embodiment, summary.noise, summary.image_size) == ("metaworld_sawyer", 0.15, 32)
    card = (slow / "README.md").read_text(encoding="utf-8")
    assert "0, 4, 8, ... of an episode" in card and "--frame-stride 4" in card
    assert "slower than" not in (dataset / "README.md").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="image_every must be at least 1, got 0"):
        collect(tmp_path / "x", TASKS, 1, image_every=0)


def test_another_seed_gives_other_starts(dataset: Path, tmp_path: Path) -> None:
    other = collect(tmp_path / "other", TASKS[:1], 1, seed=6, num_workers=1, images=False)
    assert load_collection_summary(other).starts[0] != load_collection_summary(dataset).starts[0]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_expert_that_cannot_succeed_is_named_and_nothing_is_left_behind(tmp_path: Path, num_workers: int) -> None:
    with pytest.raises(RuntimeError, match=r"'drawer-open'.*0 of 10.*max_episode_steps=3"):
        collect(tmp_path / "none", ["drawer-open"], 3, max_episode_steps=3, images=False, num_workers=num_workers)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_collection_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from priorvla.deployment import demonstrations

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demonstrations, "record_demonstration", interrupt)
    with pytest.raises(KeyboardInterrupt):
        collect(tmp_path / "none", TASKS, 2, images=False, num_workers=1)
    assert list(tmp_path.iterdir()) == []


def test_bad_requests_are_refused_before_anything_is_made(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'drawer-opne'"):
        collect(tmp_path / "x", ["drawer-opne"], 1)
    with pytest.raises(ValueError, match="named twice"):
        collect(tmp_path / "x", ["reach", "reach"], 1)
    with pytest.raises(ValueError, match="no task is named"):
        collect(tmp_path / "x", [], 1)
    with pytest.raises(ValueError, match="episodes_per_task must be at least 1, got 0"):
        collect(tmp_path / "x", ["reach"], 0)
    with pytest.raises(ValueError, match=r"'libero_goal/turn_on_the_stove'.*libero_object, .*libero_spatial"):
        collect(tmp_path / "x", ["libero_goal/turn_on_the_stove"], 1, environment="libero")
    with pytest.raises(ValueError, match="metaworld knows no 'robot', only image_size"):
        collect(tmp_path / "x", ["reach"], 1, environment_options={"robot": "ur5e"})
    with pytest.raises(FileExistsError, match="overwrite"):
        collect(dataset, ["reach"], 1)
    assert list(tmp_path.iterdir()) == []


def test_the_card_says_where_success_is_not_the_criterion() -> None:
    body = Embodiment("finger", ["x", "y"], ["x", "y"], control_rate=10.0)
    origin = collection_origin("pusht", {"push-t": 0.25}, success_required=False, noise=0.0, seed=3)
    card = create_dataset_card(body, tasks={"Push the T.": 8}, frames=600, origin=origin).text
    assert "**Success is not the criterion here**" in card and "No noise was added" in card
    assert "1.0 minutes" in card and "| push-t | 25% |" in card
    assert "Only episodes that solve" not in card
