"""Real-time chunking under a simulated clock: no pause, seams that fit, and what happens when predictions fail."""

from itertools import pairwise

import numpy as np
import pytest

from priorvla.configuration.embodiment import Embodiment
from priorvla.deployment import realtime
from priorvla.deployment.action_limits import ActionLimits
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.deployment.realtime import RealTimePolicy
from priorvla.deployment.simulated_delay import DelayedExecutor, DelayedPolicy

H, RATE = 6, 10.0


@pytest.fixture(scope="module")
def checkpoint(save_policy, tmp_path_factory):
    random = np.random.default_rng(0)
    arm = Embodiment("arm", ["x", "y"], ["x", "y"], control_rate=RATE, cameras=["front"])
    arm = arm.with_statistics(random.normal(size=(50, 2)), random.normal(size=(50, 2)))
    return save_policy(tmp_path_factory.mktemp("policy"), [arm], use_history=True, history_size=3)


@pytest.fixture
def make_policy(checkpoint, tiny_backbone):
    def make(**arguments) -> PriorVLAPolicy:
        return PriorVLAPolicy.from_pretrained(checkpoint, backbone=tiny_backbone, **{"execute_steps": 2, **arguments})

    return make


def seen(step: int) -> dict:
    random = np.random.default_rng(step)
    image = random.integers(0, 256, (28, 28, 3), dtype=np.uint8)
    return {"state": random.normal(size=2).astype(np.float32), "images": {"front": image}, "instruction": "go"}


def run(robot: RealTimePolicy, executor: DelayedExecutor, steps: int, change=lambda step, observation: observation):
    actions = []
    for step in range(steps):
        actions.append(robot.act(change(step, seen(step))))
        executor.tick()
    return np.stack(actions)


def recorded(policy: PriorVLAPolicy) -> list[tuple[np.ndarray | None, np.ndarray]]:
    """Prefix and chunk of every prediction from now on."""
    made, predict = [], policy.predict

    def note(sessions, observations, prefixes=None):
        chunk = predict(sessions, observations, prefixes)
        made.append((None if prefixes is None else prefixes[0], chunk[0]))
        return chunk

    policy.predict = note
    return made


@pytest.mark.parametrize("delay", [1, 2, 3])
def test_a_model_slower_than_the_control_period_makes_no_pause(make_policy, delay):
    policy, executor = make_policy(), DelayedExecutor(delay)
    robot = RealTimePolicy(policy, executor=executor)
    actions = run(robot, executor, 40)
    assert np.isfinite(actions).all()
    assert robot.statistics.held == 0
    assert set(robot.statistics.delays) == {delay} and robot.statistics.predictions >= 40 // (H - 1) - 1
    assert robot.statistics.late <= 1  # the first, whose delay nobody knew


def test_a_chunk_begins_with_what_was_executed_while_it_was_computed(make_policy):
    policy, executor = make_policy(), DelayedExecutor(3)
    made, robot = recorded(policy), RealTimePolicy(policy, executor=executor)
    actions = run(robot, executor, 30)
    # chunk by chunk: the first starts at step 0, the next ones where they were asked for
    starts = [0]
    for (_, old), (prefix, new) in pairwise(made):
        step = next(s for s in range(starts[-1] + 1, starts[-1] + H) if np.array_equal(old[s - starts[-1]], new[0]))
        starts.append(step)
        np.testing.assert_array_equal(new[: len(prefix)], prefix)
        np.testing.assert_array_equal(new[: len(prefix)], old[step - starts[-2] :][: len(prefix)])
        if step + H < len(actions):
            np.testing.assert_array_equal(actions[step : step + len(prefix)], prefix)
    assert len(starts) > 4
    assert [len(prefix) for prefix, _ in made[2:]] == [3] * len(made[2:])


def test_a_prefix_changes_what_comes_behind_it(make_policy):
    policy = make_policy()
    alone = policy.predict([policy.new_session(0)], [seen(0)])[0]
    prefix = alone[:3] + 1
    led = policy.predict([policy.new_session(0)], [seen(0)], [prefix])[0]
    np.testing.assert_array_equal(led[:3], prefix)
    assert not np.allclose(led[3:], alone[3:])
    rows = policy.predict([policy.new_session(0)] * 2, [seen(0)] * 2, [None, prefix])
    np.testing.assert_array_equal(rows[0][3:].shape, alone[3:].shape)


def test_sessions_with_and_without_a_prefix_share_a_batch(make_policy):
    policy = make_policy()
    alone = policy.predict([policy.new_session(0)], [seen(0)])[0]
    prefix = alone[:2] + 1
    led = policy.predict([policy.new_session(1)], [seen(1)], [prefix])[0]
    both = policy.predict([policy.new_session(0), policy.new_session(1)], [seen(0), seen(1)], [None, prefix])
    np.testing.assert_allclose(both, np.stack([alone, led]), rtol=1e-5, atol=1e-6)


def test_the_same_seed_and_delays_give_the_same_actions(make_policy):
    first, second, other = (
        run(RealTimePolicy(make_policy(), executor=executor, seed=seed), executor, 20)
        for seed, executor in ((0, DelayedExecutor(2)), (0, DelayedExecutor(2)), (1, DelayedExecutor(2)))
    )
    np.testing.assert_array_equal(first, second)
    assert not np.allclose(first, other)


def test_the_robot_is_held_when_nothing_is_left_and_goes_on_when_a_chunk_is_there(make_policy):
    executor = DelayedExecutor(9)
    robot = RealTimePolicy(make_policy(), executor=executor)
    actions = run(robot, executor, 30)
    assert robot.command_counts.held == robot.statistics.held > 0
    np.testing.assert_array_equal(actions[6], actions[5])  # an absolute target is repeated
    assert robot.statistics.predictions == 3
    np.testing.assert_array_equal(actions[6:11], actions[[5] * 5])  # asked for in step 2, there in step 11
    assert not np.array_equal(actions[11], actions[5])
    executor.steps, held = 2, robot.statistics.held
    run(robot, executor, 30)
    assert robot.statistics.predictions > 8 and robot.statistics.held < held + 9


def test_limits_hold_across_chunks(make_policy):
    executor = DelayedExecutor(2)
    robot = RealTimePolicy(make_policy(limits=ActionLimits(low=-0.1, high=0.1, max_rate=0.5)), executor=executor)
    made = recorded(robot.policy)
    actions = run(robot, executor, 60)
    assert np.abs(actions[30:]).max() <= 0.1 + 1e-6  # from where it starts it comes back at the rate
    assert np.abs(np.diff(actions, axis=0)).max() <= 0.05 + 1e-6
    assert all(np.abs(prefix).max() <= 0.1 + 1e-6 for prefix, _ in made[15:])  # what is sent, and not what was planned


def test_a_failed_prediction_is_survived_and_three_in_a_row_are_raised(make_policy):
    policy, executor = make_policy(), DelayedExecutor(1)
    robot, predict = RealTimePolicy(policy, executor=executor), policy.predict
    run(robot, executor, 4)
    broken: list[int] = []

    def fail(*arguments):
        broken.append(1)
        raise ValueError("no picture came")

    policy.predict = fail
    for step in range(2):
        robot.act(seen(step))
        executor.tick()
    assert robot.statistics.failures >= 1
    policy.predict = predict
    run(robot, executor, 6)
    assert robot.statistics.held == 0
    policy.predict = fail
    with pytest.raises(ValueError, match="no picture came"):
        run(robot, executor, 20)


def test_an_observation_that_is_too_old_or_not_finite_is_not_predicted_from(make_policy):
    policy, executor, clock = make_policy(), DelayedExecutor(1), [100.0]
    made = recorded(policy)
    robot = RealTimePolicy(policy, executor=executor, max_observation_age=0.5, clock=lambda: clock[0])

    def aged(step, observation):
        return {**observation, "time": 100.0 if step < 3 else 99.0}

    run(robot, executor, 12, aged)
    assert robot.statistics.stale == 9 and len(made) == 2
    assert robot.statistics.held > 0
    executor = DelayedExecutor(1)
    blind = RealTimePolicy(policy, executor=executor)
    run(blind, executor, 3)
    made.clear()
    run(blind, executor, 12, lambda step, observation: {**observation, "state": np.array([np.nan, 0])})
    assert blind.statistics.stale == 12 and not made


def test_what_is_not_finite_does_not_stay_in_the_past(make_policy):
    executor = DelayedExecutor(1)
    robot = RealTimePolicy(make_policy(), executor=executor)

    def broken(step, observation):
        return {**observation, "state": np.array([np.nan, 0])} if step == 5 else observation

    run(robot, executor, 20, broken)
    assert robot.statistics.failures == 0 and robot.statistics.stale == 1


def test_a_chunk_from_long_ago_is_thrown_away_when_the_robot_was_held(make_policy):
    clock, executor = [0.0], DelayedExecutor(8)
    robot = RealTimePolicy(make_policy(), executor=executor, max_observation_age=0.2, clock=lambda: clock[0])
    actions = []
    for step in range(12):
        actions.append(robot.act({**seen(step), "time": clock[0]}))
        executor.tick()
        clock[0] += 0.1
    assert robot.statistics.predictions == 0 and robot.statistics.stale == 1
    np.testing.assert_array_equal(actions[6:], actions[5:6] * 6)


@pytest.mark.parametrize("delay", [1, 3])
def test_after_a_pause_in_which_the_caller_held_the_robot_only_what_is_seen_now_is_acted_on(make_policy, delay):
    clock, executor, policy = [0.0], DelayedExecutor(delay), make_policy()
    robot = RealTimePolicy(policy, executor=executor, max_observation_age=0.35, clock=lambda: clock[0], delay=delay)
    made = recorded(policy)

    def step(number: int, command) -> np.ndarray:
        action = command({**seen(number), "time": clock[0]})
        executor.tick()
        clock[0] += 0.1
        return action

    for number in range(4):
        step(number, robot.act)
    begun, planned = len(made), robot.statistics.predictions
    held = [step(0, lambda _: robot.hold()) for _ in range(50)]  # the cameras were away
    assert robot.statistics.held == 50
    after = [step(100 + number, robot.act) for number in range(delay + 1)]
    np.testing.assert_array_equal(after[:-1], held[:1] * delay)  # held on, until there is a chunk from now
    assert len(made) == begun + 1 and robot.statistics.predictions == planned + 1
    np.testing.assert_array_equal(after[-1], made[-1][1][0])


def test_a_chunk_that_comes_when_nobody_has_asked_for_long_is_thrown_away(make_policy):
    clock, executor = [0.0], DelayedExecutor(2)
    robot = RealTimePolicy(make_policy(), executor=executor, max_observation_age=0.2, clock=lambda: clock[0], delay=2)
    for step in range(4):
        robot.act({**seen(step), "time": clock[0]})
        executor.tick()
        clock[0] += 0.1
    assert robot._running is not None or robot.statistics.predictions
    planned, stale = robot.statistics.predictions, robot.statistics.stale
    executor.tick()
    clock[0] += 5
    robot.act({**seen(9), "time": clock[0]})
    assert (robot.statistics.predictions, robot.statistics.stale) == (planned, stale + 1)


def test_a_model_that_is_slow_but_on_time_is_not_taken_for_a_pause(make_policy):
    clock, executor = [0.0], DelayedExecutor(3)
    robot = RealTimePolicy(make_policy(), executor=executor, max_observation_age=0.15, clock=lambda: clock[0], delay=3)
    for step in range(40):
        robot.act({**seen(step), "time": clock[0]})
        executor.tick()
        clock[0] += 0.1
    assert robot.statistics.stale == robot.statistics.held == 0 and robot.statistics.predictions > 8


@pytest.mark.parametrize(("pace", "warnings"), [(RATE, 0), (1.4 * RATE, 0), (10 * RATE, 1)])
def test_a_loop_that_is_quicker_than_the_robots_data_is_told_once(make_policy, monkeypatch, pace, warnings):
    told, clock, executor = [], [0.0], DelayedExecutor(1)
    monkeypatch.setattr(realtime.logger, "warning", lambda text, *values: told.append(text % values))
    robot = RealTimePolicy(make_policy(), executor=executor, clock=lambda: clock[0])
    for step in range(50):
        robot.act(seen(step))
        executor.tick()
        clock[0] += 1 / pace
    assert len(told) == warnings
    assert all("called 100 times a second, and 'arm' is controlled 10 times" in text for text in told)


def test_one_slow_prediction_does_not_change_how_the_next_ones_begin(make_policy):
    executor = DelayedExecutor(1)
    robot = RealTimePolicy(make_policy(), executor=executor)
    made = recorded(robot.policy)
    run(robot, executor, 15)
    executor.steps, begun = 3, len(made)
    while len(made) == begun:
        run(robot, executor, 1)
    executor.steps = 1
    run(robot, executor, 10)
    assert robot.statistics.delays.count(3) == 1 and robot.delay == 1


def test_to_be_held_for_too_long_is_an_error_after_which_the_robot_can_still_be_held(make_policy):
    executor = DelayedExecutor(10_000)
    robot = RealTimePolicy(make_policy(), executor=executor, max_hold=1.0)
    with pytest.raises(TimeoutError, match=r"held for 1\.1 s: no prediction came"):
        run(robot, executor, 30)
    assert np.isfinite(robot.hold()).all()
    with pytest.raises(TimeoutError, match="no prediction came"):
        robot.act(seen(0))


def test_buffers_that_a_driver_uses_again_change_nothing(make_policy):
    executor, again = DelayedExecutor(1), DelayedExecutor(1)
    state, image = np.zeros(2, dtype=np.float32), np.zeros((28, 28, 3), dtype=np.uint8)

    def reused(step, observation):
        state[:], image[:] = observation["state"], observation["images"]["front"]
        return {**observation, "state": state, "images": {"front": image}}

    fresh = run(RealTimePolicy(make_policy(), executor=executor), executor, 12)
    np.testing.assert_array_equal(run(RealTimePolicy(make_policy(), executor=again), again, 12, reused), fresh)


def test_a_camera_that_gives_nothing_is_no_observation(make_policy):
    executor = DelayedExecutor(1)
    robot = RealTimePolicy(make_policy(), executor=executor)
    run(robot, executor, 2)
    run(robot, executor, 10, lambda step, observation: {**observation, "images": {"front": None}})
    assert robot.statistics.stale == 10 and robot.statistics.held > 0 and robot.statistics.failures == 0


def test_a_time_of_another_clock_is_refused(make_policy):
    robot = RealTimePolicy(make_policy(), max_observation_age=0.5, clock=lambda: 10.0)
    with pytest.raises(ValueError, match="ahead of the policy's clock"):
        robot.act({**seen(0), "time": 1.7e9})


def test_a_first_observation_that_cannot_be_used_is_refused(make_policy):
    robot = RealTimePolicy(make_policy(), max_observation_age=0.5, clock=lambda: 10.0)
    with pytest.raises(ValueError, match="first observation is too old"):
        robot.act({**seen(0), "time": 9.0})
    with pytest.raises(ValueError, match="observations need 'time'"):
        robot.act(seen(0))
    robot.close()


def test_after_a_reset_nothing_of_the_old_episode_is_left(make_policy):
    executor = DelayedExecutor(1)  # as is expected at first: what is known of delays stays
    robot = RealTimePolicy(make_policy(), executor=executor, seed=5)
    first = run(robot, executor, 12)
    robot.reset(5)
    executor.__init__(1)
    np.testing.assert_array_equal(run(robot, executor, 12), first)
    assert robot.statistics.steps == 12


def test_a_prediction_that_is_under_way_at_a_reset_is_nobodys(make_policy):
    executor = DelayedExecutor(3)
    robot = RealTimePolicy(make_policy(), executor=executor)
    run(robot, executor, 4)
    robot.reset()
    for _ in range(4):
        executor.tick()
    assert robot.statistics.predictions == 0 and robot.statistics.failures == 0


def test_the_delay_is_measured_before_the_first_action_and_a_model_that_is_too_slow_is_refused(make_policy):
    policy = make_policy()
    assert policy.warm_up() > 0
    with RealTimePolicy(policy) as robot:
        policy.warm_up = lambda **_: 0.25
        assert robot.warm_up() == 3 == robot.delay
        policy.warm_up = lambda **_: 0.7
        with pytest.raises(ValueError, match=r"takes 0\.70 s, 7 steps at 10 Hz, more than half"):
            robot.warm_up()


def test_a_thread_of_its_own_drives_a_robot(make_policy):
    with RealTimePolicy(make_policy()) as robot:
        actions = np.stack([robot.act(seen(step)) for step in range(30)])
    assert np.isfinite(actions).all() and robot.statistics.steps == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"execute_steps": H}, "must be between 1 and 5"), ({"execute_steps": 0}, "must be between 1 and 5")],
)
def test_settings_that_leave_no_time_to_predict_are_refused(make_policy, arguments, message):
    with pytest.raises(ValueError, match=message):
        RealTimePolicy(make_policy(), **arguments)


def test_a_delayed_policy_answers_every_step_of_every_episode(make_policy):
    policy = DelayedPolicy(make_policy(), delay=2)
    sessions = [policy.new_session(seed) for seed in (0, 1)]
    actions = np.stack([policy.act(sessions, [seen(step)] * 2) for step in range(12)], axis=1)
    alone = policy.new_session(1)
    np.testing.assert_array_equal(actions[1], np.concatenate([policy.act([alone], [seen(s)]) for s in range(12)]))
    assert sessions[0].robot.statistics.delays == [2] * len(sessions[0].robot.statistics.delays)
    assert sessions[0].robot.statistics.late == sessions[0].robot.statistics.held == 0
    with pytest.raises(ValueError, match="delay=0 must be at least 1"):
        DelayedPolicy(make_policy(), delay=0)


def test_averaged_chunks_are_no_real_time_chunks(make_policy):
    with pytest.raises(ValueError, match="leave it out here"):
        RealTimePolicy(make_policy(execute_steps=None, ensemble=0.01))
