"""Open-loop replay: what a policy would have done beside what was recorded, in the robot's units."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from priorvla.cli import main
from priorvla.configuration.rotations import RotationGroup
from priorvla.deployment.replay_report import replay_checkpoint, replay_source, write_replay
from priorvla.training.data.readers import load_trajectories
from priorvla.training.held_out import find_held_out, write_held_out

HORIZON = 6
LENGTHS = (13, 9, 5, 11)


class Oracle:
    """Knows the episodes, by their states, and answers with the recorded actions, all of them off by `offset`."""

    execute_steps = 4

    def __init__(self, source, offset=0.0):
        self.embodiment, self.offset = source.embodiment, offset
        self.answers = {}
        for own in source.trajectories:
            padded = np.concatenate([own.actions, np.full((HORIZON, own.actions.shape[1]), 99.0, np.float32)])
            self.answers |= {state.tobytes(): padded[t : t + HORIZON] for t, state in enumerate(own.states)}
        self.remembered = []

    def new_session(self, seed):
        self.remembered.append([])
        return self.remembered[-1]

    def remember(self, session, observation, action):
        session.append((observation["state"], action))

    def predict(self, sessions, observations):
        assert all(o["instruction"] and o["images"]["front"].shape == (28, 28, 3) for o in observations)
        return np.stack([self.answers[o["state"].tobytes()] for o in observations]) + np.float32(self.offset)


@pytest.fixture(scope="module")
def recorded(bodies, write_demonstrations, tmp_path_factory):
    return write_demonstrations(tmp_path_factory.mktemp("recorded") / "set", bodies[0], LENGTHS)


@pytest.fixture
def source(recorded):
    return load_trajectories(recorded, frames=True)


def test_the_recorded_actions_themselves_are_no_error_and_steps_behind_the_end_count_nowhere(source):
    replay = replay_source(Oracle(source), source)
    assert not replay.errors.policy.any()
    starts = [start for length in LENGTHS for start in range(0, length, 4)]
    lengths = [length for length in LENGTHS for _ in range(0, length, 4)]
    left = [length - start for start, length in zip(starts, lengths, strict=True)]
    assert replay.errors.counts.tolist() == [sum(rest > step for rest in left) for step in range(HORIZON)]
    content = replay.to_dict()
    assert content["chunks"] == len(starts) and content["overall"]["chunk"]["over_mean_action"] == 0


def test_an_answer_that_is_off_by_a_constant_has_that_error_in_every_dim_and_step(source):
    replay = replay_source(Oracle(source, offset=0.25), source)
    np.testing.assert_allclose(replay.errors.policy, 0.25, atol=1e-6)
    mean = np.mean(np.concatenate([own.actions for own in source.trajectories]), axis=0)
    first = np.concatenate([own.actions[::4] for own in source.trajectories])
    np.testing.assert_allclose(replay.errors.mean_action[0], np.abs(first - mean).mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        replay.errors.relative(replay.errors.mean_action)[0], np.mean(0.25 / replay.errors.mean_action[0]), rtol=1e-5
    )


def test_repeating_the_last_action_is_right_where_nothing_changes(source):
    for own in source.trajectories:
        own.actions = np.ones_like(own.actions)
    replay = replay_source(Oracle(source, offset=0.5), source)
    assert not replay.errors.last_action.any() and not replay.errors.mean_action.any()
    content = replay.to_dict()
    assert content["overall"]["executed"] == {"over_mean_action": None, "over_last_action": None}


def test_a_policy_with_a_memory_remembers_what_was_recorded_before(source):
    policy = Oracle(source)
    replay_source(policy, source)
    (first, second, *_), actions = policy.remembered, source.trajectories[0].actions
    assert first == [] and len(second) == 4
    for (_, action), wanted in zip(second, actions, strict=False):
        np.testing.assert_array_equal(action, wanted)


def test_of_a_rotation_the_nearer_numbers_count(source):
    rotations = [RotationGroup([1, 2, 3], [], "euler_xyz")]
    body = replace(source.embodiment, rotations=rotations, action_statistics=None)
    policy = Oracle(source, offset=2 * np.pi)
    policy.embodiment = body
    replay = replay_source(policy, source)
    np.testing.assert_allclose(replay.errors.policy[:, 0], 2 * np.pi, rtol=1e-5)
    np.testing.assert_allclose(replay.errors.policy[:, 1:], 0, atol=1e-5)


def test_a_replay_is_reported_with_numbers_and_plots(source, tmp_path):
    page = write_replay(replay_source(Oracle(source, 0.1), source), {"checkpoint": "x"}, tmp_path / "report")
    html = page.read_text()
    assert html.count("<svg") == 2 + 4 and "It is not known which episodes the training held out" in html
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["kind"] == "open-loop" and content["episodes"] == [0, 1, 2, 3]
    assert np.shape(content["by_step"]["policy"]) == (HORIZON, 4)


def test_another_robot_or_a_missing_camera_is_refused_by_name(source, bodies, recorded):
    policy = Oracle(source)
    policy.embodiment = bodies[1]
    with pytest.raises(ValueError, match="is of 'small', the checkpoint drives 'large': pass --embodiment"):
        replay_source(policy, source)
    with pytest.raises(ValueError, match=r"4 action dims .* 7 .* it is another robot"):
        replay_source(policy, source, named=True)
    policy.embodiment = replace(source.embodiment, cameras=["front", "wrist"])
    with pytest.raises(ValueError, match="has no camera 'wrist', with which the checkpoint sees; it has front"):
        replay_source(policy, source)


def test_episodes_that_a_training_held_out_are_found_by_what_they_hold(source, recorded, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoint-5").mkdir(parents=True)
    assert find_held_out(run, source) is None
    write_held_out(run, [load_trajectories(recorded, episodes=[2, 1])])
    assert find_held_out(run, source) == find_held_out(run / "checkpoint-5", source) == [1, 2]
    assert find_held_out(run, load_trajectories(recorded, episodes=[0, 3])) is None


@pytest.mark.parametrize("fields", [{}, {"language": False, "fusion": "gated"}])
def test_an_untrained_checkpoint_gives_finite_numbers(fields, save_policy, bodies, recorded, tiny_backbone, tmp_path):
    checkpoint = save_policy(tmp_path / "policy", bodies, **fields)
    options = {"backbone": str(tiny_backbone), "execute_steps": 2}
    replay = replay_checkpoint(str(checkpoint), str(recorded), tmp_path / "report", **options)
    assert [episode.episode_index for episode in replay.episodes] == [1, 2, 3] and replay.held_out is None
    assert np.isfinite(replay.errors.policy).all() and (replay.errors.policy > 0).all()
    write_held_out(checkpoint, [load_trajectories(recorded, episodes=[0])])
    again = replay_checkpoint(str(checkpoint), str(recorded), tmp_path / "again", embodiment="small", **options)
    assert [episode.episode_index for episode in again.episodes] == [0] and again.held_out is True


def test_the_command_refuses_what_does_not_belong_together(save_policy, bodies, recorded, tmp_path, capsys):
    checkpoint = str(save_policy(tmp_path / "policy", bodies))
    base = ["evaluate", checkpoint, "--output-dir", str(tmp_path / "out")]
    for more, said in (
        (["--open-loop", str(recorded), "--tasks", "reach"], "--tasks means nothing with --open-loop"),
        (["--tasks", "reach", "--episodes", "1"], "--episodes means nothing without --open-loop"),
        (["--open-loop", str(recorded), "--episodes", "x"], "--episodes 'x' is neither a number nor a range"),
        (["--open-loop", str(recorded), "--episodes", "1", "7-9"], "--episodes 7: set has 4, 0 to 3"),
        (["--open-loop", str(tmp_path / "nowhere")], "nowhere does not exist"),
    ):
        assert main([*base, *more]) == 2
        assert said in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "trials.jsonl").touch()
    assert main([*base, "--open-loop", str(recorded)]) == 2
    assert "has trials of an evaluation in a simulator" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["trials.jsonl"]
