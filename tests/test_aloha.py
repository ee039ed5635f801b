"""ALOHA as a robot meets it: seeded, upright, silent on where objects lie; and our two-handed expert."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("gym_aloha") is None:
    pytest.skip("needs the extra 'aloha'", allow_module_level=True)
from priorvla.deployment.demonstrations import DemonstrationSettings, record_demonstration
from priorvla.deployment.environments import aloha_env
from priorvla.deployment.environments.aloha_env import AlohaEnv
from priorvla.deployment.environments.registry import OutOfReachError


@pytest.fixture(scope="module")
def transfer() -> Iterator[AlohaEnv]:
    environment = AlohaEnv("transfer_cube", cameras=("top", "angle"))
    yield environment
    environment.close()


def drive(environment: AlohaEnv, seed: int, steps: int, look: bool = False) -> tuple[np.ndarray, np.ndarray, bool]:
    """States and the expert's actions of an episode, and whether it was ever solved."""
    observation, _ = environment.reset(seed=seed)
    states, actions, solved = [observation["state"]], [], False
    for _ in range(steps):
        if look:
            observation["images"]["top"]
        actions.append(environment.expert_action())
        observation, _, _, _, info = environment.step(actions[-1])
        states.append(observation["state"])
        solved |= info["success"]
    return np.stack(states), np.stack(actions), solved


def test_the_same_seed_gives_the_same_episode_whatever_ran_before_and_whoever_looked(transfer: AlohaEnv) -> None:
    first, actions, _ = drive(transfer, seed=3, steps=40)
    drive(transfer, seed=4, steps=15)
    again, _, _ = drive(transfer, seed=3, steps=40, look=True)
    fresh = AlohaEnv("transfer_cube", render=False)
    elsewhere, same_actions, _ = drive(fresh, seed=3, steps=40)
    fresh.close()
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, elsewhere)
    np.testing.assert_array_equal(actions, same_actions)


def test_an_observation_is_fourteen_joints_and_pictures_and_nothing_of_the_objects(transfer: AlohaEnv) -> None:
    starts = np.stack([transfer.reset(seed=seed)[0]["state"] for seed in range(4)])
    assert starts.shape == (4, 14)
    assert starts.dtype == np.float32
    assert np.ptp(starts, axis=0).max() == 0  # the cube's place changes with the seed, the arms' start does not
    observation, info = transfer.reset(seed=0)
    assert set(observation) == {"state", "images"}
    assert set(info) == {"success"}
    _, reward, terminated, _, info = transfer.step(observation["state"])
    assert set(info) == {"success"}
    assert terminated is False
    assert reward == 0


def test_every_joint_goes_where_its_action_says(transfer: AlohaEnv) -> None:
    """Names, order and units of state and action are the same: 0.2 rad, or an opened gripper, one dim at a time."""
    body = transfer.embodiment
    assert body.action_names == body.state_names
    assert body.action_names[7] == "right_waist"
    assert body.gripper_dims == [6, 13]
    start = transfer.reset(seed=0)[0]["state"]
    for dim in range(14):
        transfer.reset(seed=0)
        action = start.copy()
        action[dim] = 1.0 if dim in body.gripper_dims else start[dim] - 0.2
        for _ in range(60):
            observation, *_ = transfer.step(action)
        moved = observation["state"] - start
        assert np.argmax(np.abs(moved)) == dim
        np.testing.assert_allclose(moved[dim], action[dim] - start[dim], rtol=0.35)


def test_the_pictures_are_upright_and_show_the_cube(transfer: AlohaEnv) -> None:
    """Seen from the front, a cube that is lifted moves up in the picture, one that lies further right moves right."""

    def cube(camera: str) -> np.ndarray:
        picture = transfer._cameras.observe()[camera].astype(int)
        assert picture.shape == (112, 112, 3)
        red = np.argwhere((picture[..., 0] > picture[..., 1] + 60) & (picture[..., 0] > picture[..., 2] + 60))
        assert len(red) > 3
        return red.mean(0)

    transfer.reset(seed=0)
    physics = transfer._physics
    places = {}
    for name, place in {"here": (0.0, 0.5, 0.02), "right": (0.1, 0.5, 0.02), "up": (0.0, 0.5, 0.2)}.items():
        physics.data.qpos[16:19] = place
        physics.forward()
        places[name] = {camera: cube(camera) for camera in ("top", "angle")}
    assert places["up"]["angle"][0] < places["here"]["angle"][0] - 5
    for camera in ("top", "angle"):
        assert places["right"][camera][1] > places["here"][camera][1] + 5


def test_a_picture_is_drawn_when_looked_at_and_not_of_the_past(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = aloha_env.OffscreenRenderer
    monkeypatch.setattr(aloha_env, "OffscreenRenderer", lambda *args: made.append(args) or original(*args))
    environment = AlohaEnv("transfer_cube", image_size=48)
    old, _ = environment.reset(seed=0)
    environment.step(old["state"])
    assert made == []
    with pytest.raises(RuntimeError, match="before the next step"):
        old["images"]["top"]
    assert environment.render().shape == (48, 48, 3)
    assert len(made) == 1
    environment.close()


def test_the_expert_hands_the_cube_over_in_most_episodes() -> None:
    environment = AlohaEnv("transfer_cube", render=False)
    outcomes = [drive(environment, seed, steps=400)[2] for seed in range(5)]
    print(f"hand-over: {sum(outcomes)} of {len(outcomes)}")
    assert sum(outcomes) >= 3
    environment.close()


def test_success_means_that_the_left_hand_alone_holds_the_cube() -> None:
    environment = AlohaEnv("transfer_cube", render=False)
    environment.reset(seed=0)
    rewards, solved = [], []
    for _ in range(400):
        _, reward, _, _, info = environment.step(environment.expert_action())
        rewards.append(reward)
        solved.append(info["success"])
    environment.close()
    assert set(rewards) >= {0, 2, 4}
    assert rewards.index(4) < solved.index(True)  # it touches the cube before the right hand lets go
    assert solved[-1]


def test_the_experts_motion_is_smooth_and_uses_both_arms_and_grippers() -> None:
    environment = AlohaEnv("transfer_cube", render=False)
    states, actions, _ = drive(environment, seed=1, steps=400)
    environment.close()
    np.testing.assert_allclose(actions[0], states[0], atol=0.01)  # it begins where the arms are
    arms = np.delete(np.arange(14), [6, 13])
    assert np.ptp(states, axis=0)[[1, 2, 4, 5, 8, 9, 11]].min() > 0.1
    assert np.ptp(states, axis=0)[[6, 13]].min() > 0.3
    assert np.abs(np.diff(actions, axis=0)).max() < 0.1
    assert np.abs(np.diff(actions[:, arms], n=2, axis=0)).max() < 0.01


def test_the_expert_goes_by_the_start_whenever_it_is_first_asked(transfer: AlohaEnv) -> None:
    """A policy is evaluated without it; it plans from what it saw when the episode began."""
    later = []
    for asked in (True, False):
        state = transfer.reset(seed=2)[0]["state"]
        for _ in range(3):
            if asked:
                transfer.expert_action()
            transfer.step(state)
        later.append(transfer.expert_action())
    np.testing.assert_array_equal(*later)


def test_the_expert_pushes_the_peg_into_the_socket() -> None:
    environment = AlohaEnv("insertion", render=False)
    environment.reset(seed=0)
    rewards = [environment.step(environment.expert_action())[1] for _ in range(400)]
    environment.close()
    assert max(rewards) == 4  # the peg touches the pin inside the socket
    assert environment.instruction == "Pick up the red peg and the blue socket and push the peg into the socket."


def test_an_episode_is_truncated_at_its_length_and_never_before() -> None:
    environment = AlohaEnv(max_episode_steps=5, render=False)
    state = environment.reset(seed=0)[0]["state"]
    assert [environment.step(state)[3] for _ in range(5)] == [False] * 4 + [True]
    environment.close()


def test_bad_arguments_are_refused_with_what_would_be_right(transfer: AlohaEnv) -> None:
    with pytest.raises(ValueError, match=r"'transfer-cube'.*transfer_cube"):
        AlohaEnv("transfer-cube")
    with pytest.raises(ValueError, match=r"'corner2'.*top"):
        AlohaEnv(cameras=("corner2",))
    with pytest.raises(ValueError, match="needs a camera"):
        AlohaEnv(cameras=())
    transfer.reset(seed=0)
    with pytest.raises(ValueError, match="14 finite action values"):
        transfer.step(np.zeros(7))
    unused = AlohaEnv(render=False)
    with pytest.raises(RuntimeError, match=r"reset\(\)"):
        unused.step(np.zeros(14))
    unused.close()


def test_without_gym_aloha_the_error_names_the_extra() -> None:
    script = "import sys; sys.modules['gym_aloha'] = None\nfrom priorvla.deployment.environments import aloha_env\n"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "pip install 'priorvla[aloha]'" in result.stderr.splitlines()[-1]


def test_a_start_that_an_arm_cannot_reach_counts_as_a_failure_and_the_next_one_is_tried(monkeypatch) -> None:
    places, sample = iter([np.array([0.0, 2.0, 0.05, 1, 0, 0, 0])]), aloha_env.sample_box_pose
    monkeypatch.setattr(
        aloha_env, "sample_box_pose", lambda seed: found if (found := next(places, None)) is not None else sample(seed)
    )
    environment = AlohaEnv("transfer_cube", render=False)
    settings = DemonstrationSettings(seed=0, images=False, noise=0.0, steps_after_success=2, attempts=3)
    demonstration = record_demonstration(environment, "transfer_cube", 0, settings)
    assert demonstration is not None and demonstration.solved and demonstration.failures == 1
    environment.reset(seed=0)
    environment._expert._objects = np.array([[0.0, 2.0, 0.05]])
    with pytest.raises(OutOfReachError, match=r"cannot be brought to \[.*\]"):
        environment.expert_action()
    environment.close()
