"""PushT as a robot meets it: seeded, upright, silent on where the T lies; pushes of ours that move it, smoothly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("gym_pusht") is None:
    pytest.skip("needs the extra 'pusht'", allow_module_level=True)
from priorvla.deployment.environments.pusht_env import PushTEnv


@pytest.fixture(scope="module")
def table() -> Iterator[PushTEnv]:
    environment = PushTEnv()
    yield environment
    environment.close()


def drive(environment: PushTEnv, seed: int, steps: int, look: bool = False) -> tuple[np.ndarray, np.ndarray, list]:
    """States, the expert's actions and the T's poses of an episode."""
    observation, _ = environment.reset(seed=seed)
    states, actions, poses = [observation["state"]], [], []
    for _ in range(steps):
        if look:
            observation["images"]["top"]
        actions.append(environment.expert_action())
        observation, *_ = environment.step(actions[-1])
        states.append(observation["state"])
        block = environment._simulation.block
        poses.append((*block.position, block.angle))
    return np.stack(states), np.stack(actions), poses


def coverage(environment: PushTEnv) -> float:
    return float(environment._simulation._get_coverage())


def test_the_same_seed_gives_the_same_episode_whatever_ran_before_and_whoever_looked(table: PushTEnv) -> None:
    first, actions, _ = drive(table, seed=3, steps=60)
    drive(table, seed=4, steps=15)
    again, _, _ = drive(table, seed=3, steps=60, look=True)
    fresh = PushTEnv(render=False)
    elsewhere, same_actions, _ = drive(fresh, seed=3, steps=60)
    fresh.close()
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, elsewhere)
    np.testing.assert_array_equal(actions, same_actions)
    assert (drive(table, seed=5, steps=60)[0] != first).any()


def test_an_observation_is_the_fingers_place_and_pictures_and_nothing_of_the_t(table: PushTEnv) -> None:
    observation, info = table.reset(seed=0)
    assert set(observation) == {"state", "images"}
    assert set(info) == {"success"}
    assert observation["state"].dtype == np.float32
    np.testing.assert_allclose(observation["state"], table._simulation.agent.position)
    assert table.embodiment.state_dim == table.embodiment.action_dim == 2
    assert table.embodiment.control_rate == 10
    _, reward, terminated, _, info = table.step(observation["state"])
    assert 0 <= reward <= 1
    assert terminated is False
    assert set(info) == {"success"}


def test_the_finger_goes_where_the_action_says_and_stays_on_the_table(table: PushTEnv) -> None:
    table.reset(seed=0)
    for _ in range(15):
        observation, *_ = table.step([40.0, 470.0])
    np.testing.assert_allclose(observation["state"], [40, 470], atol=5)
    for _ in range(15):
        observation, *_ = table.step([-900.0, 470.0])
    assert (observation["state"] >= -1).all()


def test_the_picture_is_upright_and_shows_finger_t_and_goal(table: PushTEnv) -> None:
    """x goes to the right and y down, as the numbers say; the finger is the only blue thing, the goal the green one."""
    table.reset(seed=0)
    for target in ([60.0, 60.0], [450.0, 60.0], [60.0, 450.0]):
        for _ in range(20):
            observation, *_ = table.step(target)
        picture = observation["images"]["top"].astype(int)
        assert picture.shape == (112, 112, 3)
        red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
        finger = np.argwhere((blue > red + 100) & (blue > green + 50))
        assert len(finger) > 10
        np.testing.assert_allclose(finger.mean(0)[::-1] * 512 / 112, observation["state"], atol=12)
    goal = np.argwhere((green > red + 60) & (green > blue + 60))
    assert len(goal) > 50
    np.testing.assert_allclose(goal.mean(0), [48, 48], atol=20)


def test_a_picture_is_drawn_when_looked_at_and_not_of_the_past(table: PushTEnv) -> None:
    old, _ = table.reset(seed=0)
    picture = old["images"]["top"]
    assert old["images"]["top"] is picture
    table.step([100.0, 100.0])
    with pytest.raises(RuntimeError, match="before the next step"):
        old["images"]["top"]
    with pytest.raises(KeyError):
        old["images"]["front"]
    motion = PushTEnv(render=False)
    assert list(motion.reset(seed=0)[0]["images"]) == []
    assert motion.render().shape == (112, 112, 3)
    motion.close()


def test_the_pushes_bring_the_t_nearer_to_its_outline(table: PushTEnv) -> None:
    """Success is not the criterion; that most of the outline is covered in most episodes is."""
    best = []
    for seed in range(6):
        table.reset(seed=seed)
        start, covered = coverage(table), []
        for _ in range(200):
            table.step(table.expert_action())
            covered.append(coverage(table))
        best.append(max(covered))
        assert max(covered) > start
    assert np.median(best) > 0.6
    assert table.success_required is False


def test_the_pushes_are_smooth_inside_the_table_and_all_over_it(table: PushTEnv) -> None:
    states, actions = (
        np.concatenate(parts) for parts in zip(*(drive(table, s, 150)[:2] for s in range(4)), strict=True)
    )
    assert actions.min() >= 0
    assert actions.max() <= 512
    assert np.ptp(states, axis=0).min() > 250
    steps = np.linalg.norm(np.diff(drive(table, 0, 150)[1], axis=0), axis=1)
    assert steps.max() < 40  # pixels a tenth of a second
    bends = np.linalg.norm(np.diff(drive(table, 0, 150)[1], n=2, axis=0), axis=1)
    assert bends.max() < 25


def test_the_pushes_come_back_from_noise(table: PushTEnv) -> None:
    """As `collect` makes every second demonstration: what is executed is noisy, the labels are clean."""
    random = np.random.default_rng(0)
    best = []
    for seed in range(4):
        table.reset(seed=seed)
        covered = []
        for _ in range(200):
            action = table.expert_action()
            np.testing.assert_array_equal(action, table.expert_action())
            table.step(action + random.normal(0, 0.15, 2) * table.noise_scale)
            covered.append(coverage(table))
        best.append(max(covered))
    assert np.median(best) > 0.5


def test_an_episode_is_truncated_at_its_length_and_never_before() -> None:
    environment = PushTEnv(max_episode_steps=5, render=False)
    environment.reset(seed=0)
    assert [environment.step([100.0, 100.0])[3] for _ in range(5)] == [False] * 4 + [True]
    environment.close()


def test_bad_arguments_are_refused_with_what_would_be_right(table: PushTEnv) -> None:
    with pytest.raises(ValueError, match=r"'push-l'.*push-t"):
        PushTEnv("push-l")
    with pytest.raises(ValueError, match="image_size 0"):
        PushTEnv(image_size=0)
    table.reset(seed=0)
    with pytest.raises(ValueError, match="2 finite action values"):
        table.step([np.nan, 0.0])
    unused = PushTEnv(render=False)
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        unused.expert_action()
    unused.close()


def test_without_gym_pusht_the_error_names_the_extra() -> None:
    script = "import sys; sys.modules['gym_pusht'] = None\nfrom priorvla.deployment.environments import pusht_env\n"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "pip install 'priorvla[pusht]'" in result.stderr.splitlines()[-1]
