"""Meta-World as a robot meets it: seeded, upright, drawn only when looked at, and silent on where objects are."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

from priorvla.deployment.environments import list_instructions, list_tasks, make_environment

if find_spec("metaworld") is None:
    pytest.skip("needs the extra 'metaworld'", allow_module_level=True)
from priorvla.deployment.environments import metaworld_env
from priorvla.deployment.environments.metaworld_env import CAMERA_VIEWS, CameraView, MetaWorldEnv


@pytest.fixture(scope="module")
def drawer() -> Iterator[MetaWorldEnv]:
    environment = MetaWorldEnv("drawer-open")
    yield environment
    environment.close()


def drive(environment: MetaWorldEnv, seed: int, steps: int, look: bool = False) -> tuple[np.ndarray, bool]:
    """States of an episode of the expert, and whether it ever solved the task."""
    observation, _ = environment.reset(seed=seed)
    states, solved = [observation["state"]], False
    for _ in range(steps):
        if look:
            observation["images"]["corner2"]
        observation, _, _, _, info = environment.step(environment.expert_action())
        states.append(observation["state"])
        solved |= info["success"]
    return np.stack(states), solved


def test_all_fifty_tasks_of_metaworld_have_an_instruction_of_their_own() -> None:
    from metaworld.env_dict import ENV_CLS_MAP

    instructions = list_instructions("metaworld")
    assert list_tasks("metaworld") == sorted(name.removesuffix("-v3") for name in ENV_CLS_MAP)
    assert len(set(instructions.values())) == len(instructions) == 50
    for instruction in instructions.values():
        assert instruction[0].isupper()
        assert instruction.endswith(".")


@pytest.mark.parametrize("task", ["assembly", "plate-slide-back-side", "window-close"])
def test_a_task_is_made_by_its_name(task: str) -> None:
    environment = make_environment("metaworld", task, render=False)
    observation, _ = environment.reset(seed=0)
    assert environment.instruction == list_instructions("metaworld")[task]
    assert environment.embodiment.name == "metaworld_sawyer"
    assert list(observation["images"]) == []
    environment.close()


def test_the_same_seed_gives_the_same_episode_whatever_ran_before_and_whoever_looked(drawer: MetaWorldEnv) -> None:
    first, _ = drive(drawer, seed=3, steps=40)
    drive(drawer, seed=4, steps=15)
    again, _ = drive(drawer, seed=3, steps=40, look=True)
    fresh = MetaWorldEnv("drawer-open", render=False)
    elsewhere, _ = drive(fresh, seed=3, steps=40)
    fresh.close()
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, elsewhere)


def test_other_seeds_put_the_drawer_elsewhere(drawer: MetaWorldEnv) -> None:
    pictures = []
    for seed in range(3):
        observation, _ = drawer.reset(seed=seed)
        pictures.append(observation["images"]["corner2"])
    assert (pictures[0] != pictures[1]).any()
    assert (pictures[1] != pictures[2]).any()


def test_the_state_is_the_hand_and_the_gripper_and_nothing_else(drawer: MetaWorldEnv) -> None:
    starts = np.stack([drawer.reset(seed=seed)[0]["state"] for seed in range(4)])
    assert starts.dtype == np.float32
    assert np.ptp(starts, axis=0).max() < 1e-6  # the drawer moves with the seed, the hand's start does not
    observation, _ = drawer.reset(seed=0)
    assert set(observation) == {"state", "images"}
    for action in ([0, 0, 1, -1], [0, 0, 1, 1]):
        for _ in range(15):
            observation, _, terminated, _, info = drawer.step(action)
        assert terminated is False
        assert set(info) == {"success"}
        starts = np.vstack([starts, observation["state"]])
    assert starts[-2, 2] > starts[0, 2] + 0.05  # +dz lifts the hand
    assert starts[-1, 3] < starts[-2, 3] - 0.1  # +1 closes the gripper
    assert drawer.embodiment.state_names[3] == "gripper_opening"


@pytest.mark.parametrize("task", ["drawer-open", "button-press-topdown", "window-open"])
def test_the_scripted_expert_solves_the_task_from_several_starts(task: str) -> None:
    environment = MetaWorldEnv(task, render=False)
    outcomes = [drive(environment, seed, steps=130)[1] for seed in range(3)]
    environment.close()
    assert outcomes == [True, True, True]


def test_an_episode_is_truncated_at_its_length_and_never_before() -> None:
    environment = MetaWorldEnv("reach", max_episode_steps=5, render=False)
    environment.reset(seed=0)
    assert [environment.step(np.zeros(4))[3] for _ in range(5)] == [False] * 4 + [True]
    environment.close()


def test_no_renderer_is_made_before_somebody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = metaworld_env.OffscreenRenderer
    monkeypatch.setattr(metaworld_env, "OffscreenRenderer", lambda *args: made.append(args) or original(*args))
    environment = MetaWorldEnv("drawer-open")
    drive(environment, seed=0, steps=3)
    assert made == []
    observation, _ = environment.reset(seed=0)
    picture = observation["images"]["corner2"]
    assert observation["images"]["corner2"] is picture
    assert len(made) == 1
    environment.close()


def test_a_picture_of_the_past_is_refused(drawer: MetaWorldEnv) -> None:
    old, _ = drawer.reset(seed=0)
    drawer.step(np.zeros(4))
    with pytest.raises(RuntimeError, match="before the next step"):
        old["images"]["corner2"]
    with pytest.raises(KeyError):
        old["images"]["topview"]


def test_the_picture_is_upright_and_shows_drawer_and_hand(drawer: MetaWorldEnv) -> None:
    """The drawer is the only green thing, the arm the only red one: the arm hangs into the picture from above."""
    observation, _ = drawer.reset(seed=0)
    picture = observation["images"]["corner2"].astype(int)
    assert picture.shape == (112, 112, 3)
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    drawer_pixels = np.argwhere((green > red + 30) & (green > blue + 30))
    arm_pixels = np.argwhere((red > green + 60) & (red > blue + 60))
    assert len(drawer_pixels) > 300
    assert len(arm_pixels) > 300
    assert arm_pixels[:, 0].mean() < drawer_pixels[:, 0].mean()  # row 0 is on top


def test_a_hand_that_is_lifted_moves_up_in_the_picture(drawer: MetaWorldEnv) -> None:
    def row_of_the_blue_finger() -> float:
        picture = drawer.render().astype(int)
        return float(np.argwhere(picture[..., 2] > picture[..., 0] + 60)[:, 0].mean())

    drawer.reset(seed=0)
    before = row_of_the_blue_finger()
    for _ in range(20):
        drawer.step([0, 0, 1, -1])
    assert row_of_the_blue_finger() < before - 5


@pytest.mark.parametrize("task", ["basketball", "sweep", "door-close"])
def test_bodies_left_out_of_the_drawing_would_not_have_been_seen(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    view = CAMERA_VIEWS["corner2"]
    complete = CameraView(view.rotated, view.position, view.window)
    environment = MetaWorldEnv(task)
    monkeypatch.setitem(CAMERA_VIEWS, "corner2", complete)
    whole = MetaWorldEnv(task)
    for each in (environment, whole):
        each.reset(seed=0)
    for step in range(91):
        action = environment.expert_action()
        if step % 30 == 0:
            np.testing.assert_array_equal(environment.render(), whole.render())
        environment.step(action)
        whole.step(action)
    environment.close()
    whole.close()


def test_other_sizes_show_the_same_view(drawer: MetaWorldEnv) -> None:
    double = MetaWorldEnv("drawer-open", image_size=224)
    double.reset(seed=0)
    drawer.reset(seed=0)
    halved = double.render().reshape(112, 2, 112, 2, 3).mean((1, 3))
    assert double.render().shape == (224, 224, 3)
    assert np.abs(halved - drawer.render()).mean() < 8
    double.close()


def test_bad_arguments_are_refused_with_what_would_be_right(drawer: MetaWorldEnv) -> None:
    with pytest.raises(ValueError, match=r"'drawer-opne'.*drawer-open"):
        MetaWorldEnv("drawer-opne")
    with pytest.raises(ValueError, match=r"'front'.*corner2"):
        MetaWorldEnv("drawer-open", camera="front")
    with pytest.raises(ValueError, match=r"'robocasa'.*metaworld"):
        make_environment("robocasa", "drawer-open")
    drawer.reset(seed=0)
    with pytest.raises(ValueError, match="4 finite action values"):
        drawer.step([0, 0, np.nan, 0])
    with pytest.raises(ValueError, match="4 finite action values"):
        drawer.step(np.zeros(7))
    unused = MetaWorldEnv("reach", render=False)
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        unused.step(np.zeros(4))
    unused.close()


def test_without_metaworld_the_error_names_the_extra_and_task_names_still_work() -> None:
    script = (
        "import sys; sys.modules['metaworld'] = None\n"
        "from priorvla.deployment.environments import list_tasks, make_environment\n"
        "assert len(list_tasks('metaworld')) == 50\n"
        "make_environment('metaworld', 'reach')\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "pip install 'priorvla[metaworld]'" in result.stderr.splitlines()[-1]


def test_without_egl_the_task_runs_and_a_picture_says_what_to_install() -> None:
    script = (
        "import ctypes\n"
        "def missing(name, *args, **kwargs): raise OSError(name)\n"
        "from priorvla.deployment.environments import offscreen_rendering\n"
        "offscreen_rendering.ctypes.CDLL, loader = missing, ctypes.CDLL\n"
        "offscreen_rendering.prepare_offscreen_rendering()\n"
        "ctypes.CDLL = loader\n"
        "from priorvla.deployment.environments import make_environment\n"
        "environment = make_environment('metaworld', 'reach')\n"
        "observation, _ = environment.reset(seed=0)\n"
        "environment.step(environment.expert_action())\n"
        "print('stepped')\n"
        "environment.render()\n"
    )
    variables = {name: value for name, value in os.environ.items() if name not in ("MUJOCO_GL", "DISPLAY")}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=variables)
    assert result.stdout == "stepped\n", result.stderr
    assert "apt-get install -y --no-install-recommends libegl1" in result.stderr
