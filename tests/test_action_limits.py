"""What a robot may be told: commands stay within limits, on speed and jerk too, and nothing unknown is sent."""

import json

import numpy as np
import pytest

from priorvla.configuration.embodiment import Embodiment
from priorvla.configuration.rotations import RotationGroup
from priorvla.deployment.action_limits import ActionGuard, ActionLimits, read_action_limits

RATE = 20.0


def arm(kinds=("absolute", "absolute"), **fields) -> Embodiment:
    names = [f"joint_{index}" for index in range(len(kinds))]
    return Embodiment("arm", names, names, control_rate=RATE, action_kinds=list(kinds), **fields)


def sent(guard: ActionGuard, commands, state=(0, 0)) -> np.ndarray:
    return np.stack([guard.apply(command, state) for command in commands])


def test_without_limits_commands_pass_as_they_are():
    commands = np.random.default_rng(0).normal(size=(30, 2)).astype(np.float32)
    guard = ActionGuard(None, arm())
    np.testing.assert_array_equal(sent(guard, commands), commands)
    assert guard.counts.clamped == 0


def test_a_command_out_of_range_is_sent_as_the_nearest_within():
    guard = ActionGuard(ActionLimits(low=[-1, None], high=0.5), arm())
    np.testing.assert_allclose(sent(guard, [[2, 2], [-3, -3], [0, 0]]), [[0.5, 0.5], [-1, -3], [0, 0]])
    assert guard.counts.clamped == 2


def test_a_target_moves_no_faster_than_the_rate_allows_and_arrives():
    guard = ActionGuard(ActionLimits(max_rate=2.0), arm())  # 0.1 a step
    out = sent(guard, [[0, 0]] + [[1, 0.05]] * 14)
    assert np.abs(np.diff(out, axis=0)).max() <= 0.1 + 1e-6
    np.testing.assert_allclose(out[-1], [1, 0.05])
    np.testing.assert_allclose(out[1], [0.1, 0.05])


def test_the_first_command_starts_from_where_the_robot_is():
    limits = ActionLimits(max_rate=2.0)
    np.testing.assert_allclose(ActionGuard(limits, arm()).apply([1, 1], state=[0.5, 0.95]), [0.6, 1.0])


@pytest.mark.parametrize(
    ("state", "message"),
    [(None, "no state was given"), ([0, np.nan], "whose joint_1 is nan"), ([0], r"state has shape \(1,\), 'arm' has")],
)
@pytest.mark.parametrize("limit", ["max_rate", "max_jerk"])
def test_without_knowing_where_the_robot_is_nothing_is_sent(limit, state, message):
    guard = ActionGuard(ActionLimits(**{limit: 2.0}), arm())
    with pytest.raises(ValueError, match=message):
        guard.apply([1, 1], state)
    np.testing.assert_allclose(guard.apply([0.5, 0.5], [0.5, 0.5]), [0.5, 0.5])


@pytest.mark.parametrize(
    ("actions", "states", "grippers"),
    [
        (["dim_0", "dim_1"], ["dim_0", "dim_1"], []),  # of several columns: what is dim_0 there is another here
        (["cmd_0", "cmd_1"], ["q_0", "q_1"], []),
        (["action_0", "action_1"], ["state_0", "state_1"], []),
        (["motor_0", "motor_1"], ["motor_0", "motor_1"], []),
        (["x", "grip"], ["x", "grip"], [1]),  # a command of a gripper is seldom its opening
        (["x", "y"], [], []),
    ],
)
@pytest.mark.parametrize("limit", ["max_rate", "max_jerk"])
def test_speed_is_not_limited_where_nobody_knows_the_start_unless_the_limits_say_it(actions, states, grippers, limit):
    body = Embodiment("arm", actions, states, control_rate=RATE, gripper_dims=grippers)
    with pytest.raises(ValueError, match=r"nothing says where it is before the first command.*start: \["):
        ActionGuard(ActionLimits(**{limit: 2.0}), body)
    anywhere = ActionGuard(ActionLimits(**{limit: 2.0}, start=[None, None]), body)
    np.testing.assert_allclose(anywhere.apply([7, -7], np.zeros(len(states))), [7, -7])
    if states:
        turned = ActionGuard(ActionLimits(max_rate=2.0, start=states[::-1]), body)
        np.testing.assert_allclose(turned.apply([1, 1], [0.5, -0.5]), [-0.4, 0.6])


def test_of_two_arms_whose_joints_are_called_alike_each_starts_from_its_own():
    body = Embodiment("arms", ["j", "j"], ["j", "j"], control_rate=RATE)
    np.testing.assert_allclose(ActionGuard(ActionLimits(max_rate=2.0), body).apply([9, 9], [1, 5]), [1.1, 5.1])


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("q", "start 'q' is no list of names"),
        ([1, 2], r"start \[1, 2\] is no list of names"),
        (["q"], "start has 1 names, 'arm' has 2 action dims"),
        (["q", None], "start: 'q' is no state dim of 'arm', which has joint_0, joint_1"),
    ],
)
def test_a_start_that_is_none_is_refused(start, message):
    with pytest.raises(ValueError, match=message):
        ActionLimits(max_rate=1, start=start).arrays(arm())


def test_a_displacement_is_its_own_speed():
    guard = ActionGuard(ActionLimits(max_rate=[2.0, None]), arm(("delta", "delta")))
    np.testing.assert_allclose(
        sent(guard, [[0.5, 0.5], [-0.5, -0.5], [0.05, 0]]), [[0.1, 0.5], [-0.1, -0.5], [0.05, 0]]
    )


@pytest.mark.parametrize("kinds", [("absolute", "absolute"), ("delta", "delta")])
def test_jerk_stays_within_its_limit_and_a_target_that_stays_is_reached_without_swinging(kinds):
    limits = ActionLimits(max_rate=3.0, max_jerk=[200.0, None])
    guard = ActionGuard(limits, arm(kinds))
    steps = [[0, 0]] * 3 + [[1, 1]] + [[1, 1] if kinds[0] == "absolute" else [0, 0]] * 60
    out = sent(guard, steps).astype(np.float64)
    places = out if kinds[0] == "absolute" else out.cumsum(axis=0)
    jerk = np.diff(places[:, 0], n=3) * RATE**3
    assert np.abs(jerk).max() <= 200 * 1.01
    assert places[:, 0].max() <= 1.001
    if kinds[0] == "absolute":
        assert places[-1, 0] == pytest.approx(1, abs=1e-3)
    assert np.abs(np.diff(places[:, 1], n=3)).max() * RATE**3 > 200  # the other dim shows that the limit did something


def test_a_smooth_motion_within_the_limits_is_followed_without_lag():
    times = np.arange(200) / RATE
    motion = np.stack([np.sin(times), np.cos(times)], axis=1)
    out = sent(ActionGuard(ActionLimits(max_rate=3.0, max_jerk=1000.0), arm()), motion, state=motion[0])
    assert np.abs(out - motion)[20:].max() < 1e-6  # within a second it has caught up from rest


def test_where_limits_cannot_be_kept_at_once_the_workspace_wins():
    guard = ActionGuard(ActionLimits(low=-1, high=1, max_rate=10.0, max_jerk=5.0), arm())
    out = sent(guard, [[0, 0]] + [[0.5, 3]] * 200)
    assert out.max() <= 1 and out[-1] == pytest.approx([0.5, 1], abs=1e-2)


@pytest.mark.parametrize("kinds", [("absolute", "absolute"), ("delta", "delta")])
def test_commands_are_counted_by_the_limit_that_changed_them_and_those_that_hold_apart(kinds):
    def counted(limits: ActionLimits, *commands) -> tuple[int, ...]:
        guard = ActionGuard(limits, arm(kinds))
        sent(guard, [[0, 0], *commands])
        counts = guard.counts
        return counts.clamped, counts.by_range, counts.by_rate, counts.by_jerk, counts.held

    all_of_them = ActionLimits(high=1.0, max_rate=2.0, max_jerk=[500.0, None])
    assert counted(all_of_them, [0, 0], [0, 0]) == (0, 0, 0, 0, 0)
    assert counted(ActionLimits(high=1.0), [0.5, 0.5], [1.5, 0]) == (1, 1, 0, 0, 0)
    assert counted(ActionLimits(max_rate=2.0), [0.05, 0.1], [0, 0.5], [-1, 0]) == (2, 0, 2, 0, 0)
    assert counted(ActionLimits(max_jerk=[50.0, None]), [0.05, 0.1]) == (1, 0, 0, 1, 0)
    assert counted(all_of_them, [1.5, 0]) == (1, 1, 1, 1, 0)
    guard = ActionGuard(all_of_them, arm(kinds))
    guard.apply([0, 0], (0, 0))
    guard.hold()
    assert (guard.counts.held, guard.counts.clamped) == (1, 0)


def test_what_a_float32_cannot_hold_is_not_sent():
    with pytest.raises(ValueError, match="beyond what a float32 holds"):
        ActionGuard(None, arm()).apply([1e39, 0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_sent_and_changes_nothing(value):
    guard = ActionGuard(ActionLimits(max_rate=2.0), arm())
    guard.apply([0, 0], [0, 0])
    with pytest.raises(ValueError, match="not finite in joint_1"):
        guard.apply([0, value])
    np.testing.assert_allclose(guard.apply([1, 1]), [0.1, 0.1])


def test_other_dims_are_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\), 'arm' takes \(2,\)"):
        ActionGuard(None, arm()).apply([0, 0, 0])


def test_to_hold_is_to_stay_at_the_last_target_and_to_make_no_displacement():
    guard = ActionGuard(None, arm(("absolute", "delta", "absolute"), gripper_dims=[2]))
    guard.apply([0.3, 0.2, -1.0])
    np.testing.assert_allclose(guard.hold(), [0.3, 0.0, -1.0])
    np.testing.assert_allclose(guard.hold(), [0.3, 0.0, -1.0])
    assert guard.counts.clamped == 0


@pytest.mark.parametrize("kinds", [("absolute", "absolute"), ("delta", "delta")])
def test_to_hold_in_full_motion_is_to_come_to_rest_within_the_jerk_and_without_going_back(kinds):
    guard = ActionGuard(ActionLimits(max_rate=2.0, max_jerk=50.0), arm(kinds))
    travel = np.arange(60)[:, None] * np.array([0.05, 0.05])  # 1 a second
    steps = travel if kinds[0] == "absolute" else np.full((60, 2), 0.05)
    moving = sent(guard, steps)
    held = np.stack([guard.hold() for _ in range(30)])
    out = np.concatenate([moving, held]).astype(np.float64)
    places = out[:, 0] if kinds[0] == "absolute" else out[:, 0].cumsum()
    assert np.diff(places)[20:].min() > -1e-6
    assert places[-1] == pytest.approx(places[-5], abs=1e-6)
    assert np.abs(np.diff(places[40:], n=3)).max() * RATE**3 <= 50 * 1.02


def test_to_hold_near_the_border_is_to_stop_there_however_hard():
    guard = ActionGuard(ActionLimits(high=1.0, max_rate=2.0, max_jerk=20.0), arm())
    sent(guard, np.linspace(0, 0.99, 40)[:, None] * np.ones(2))  # at speed; a gentle stop would end at 1.04
    held = np.stack([guard.hold() for _ in range(20)])
    np.testing.assert_array_equal(held[-2:], 1.0)
    assert held.max() == 1.0


def test_jerk_stays_within_its_limit_whatever_is_asked_for():
    random = np.random.default_rng(0)
    targets = np.repeat(random.normal(size=(60, 2)), random.integers(1, 6, 60), axis=0)
    targets = targets + 0.05 * random.normal(size=targets.shape)
    out = sent(ActionGuard(ActionLimits(max_rate=3.0, max_jerk=30.0), arm()), targets, targets[0]).astype(np.float64)
    assert np.abs(np.diff(out, n=3, axis=0)).max() * RATE**3 <= 30 * 1.05
    assert np.abs(np.diff(out, axis=0)).max() * RATE <= 3 * 1.001


def test_a_robot_that_starts_out_of_range_comes_back_at_the_rate():
    guard = ActionGuard(ActionLimits(high=1.0, max_rate=2.0), arm())
    out = sent(guard, [[0.5, 0.5]] * 30, state=[2.0, 0.5])
    assert out[0, 0] == pytest.approx(1.9) and np.abs(np.diff(out[:, 0])).max() <= 0.1 + 1e-6
    assert out[-1, 0] == pytest.approx(0.5)


def test_a_copy_goes_on_by_itself():
    guard = ActionGuard(ActionLimits(max_rate=2.0, max_jerk=100.0), arm())
    guard.apply([0, 0], [0, 0])
    first = sent(guard.copy(), [[1, 1]] * 5)
    np.testing.assert_array_equal(sent(guard, [[1, 1]] * 5), first)
    assert not np.array_equal(first[0], guard.apply([1, 1]))


def test_before_the_first_command_only_displacements_can_be_held():
    np.testing.assert_array_equal(ActionGuard(None, arm(("delta", "delta"))).hold(), [0, 0])
    with pytest.raises(ValueError, match="no command yet"):
        ActionGuard(None, arm()).hold()


def test_limits_come_from_a_file_of_one_robot_or_of_several_by_name(tmp_path):
    file = tmp_path / "limits"
    file.write_text(json.dumps({"low": -1, "max_rate": [1.0, None]}))
    assert ActionLimits.from_file(file, arm()) == ActionLimits(low=-1, max_rate=[1.0, None])
    file.write_text("arm:\n  high: 1e-2\nother:\n  high: [1, 2, 3]\nfree: {}\n")
    assert ActionLimits.from_file(file, arm()) == ActionLimits(high=0.01)
    assert set(read_action_limits(file)) == {"arm", "other", "free"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("max_rat: 1", r"limits: 'max_rat' is unknown, did you mean 'max_rate'"),
        ("arm: {hihg: 1}", r"limits: arm: 'hihg' is unknown, did you mean 'high'"),
        ("arm: {high: fast}", r"limits: arm: high 'fast' is no finite number \(no limit is null\)"),
        ("max_rate: -1", r"limits: max_rate -1 must be positive"),
        ("low: [1, 2, 3]", r"limits: low has 3 numbers, 'arm' has 2 action dims"),
        ("leg: {high: 1}", r"limits has limits of 'leg' and none of 'arm': add `arm: \{\}`"),
        ("{arm: {high: 1}, low: 0}", r"limits: low is 0: beside embodiments' names there is nothing else"),
        ("[1, 2]", r"limits: limits are a mapping of low, high, max_rate, max_jerk, start, .* found list"),
        ("low: {", r"limits: not valid YAML"),
        ("", r"limits: limits are a mapping .* found NoneType"),
    ],
)
def test_what_is_wrong_in_a_file_of_limits_is_named(tmp_path, content, message):
    file = tmp_path / "limits"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        ActionLimits.from_file(file, arm())


def test_a_file_of_limits_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"limits\.yaml does not exist: name a YAML or JSON file"):
        read_action_limits(tmp_path / "limits.yaml")


def test_limits_can_be_written_down_by_dim_and_read_again():
    limits = ActionLimits(low=-1, max_rate=[2.0, None], start=["joint_1", None])
    told = json.loads(json.dumps(limits.by_dim(arm())))
    assert told == {"low": [-1, -1], "max_rate": [2.0, None], "start": ["joint_1", None]}
    assert ActionLimits(**told).by_dim(arm()) == told


def test_limits_of_the_data_leave_a_margin():
    body = arm().with_statistics(np.zeros((2, 2)), np.array([[-1.0, 0.0], [1.0, 10.0]]))
    limits = ActionLimits.of_data(body, margin=0.1)
    np.testing.assert_allclose([limits.low, limits.high], [[-1.2, -1.0], [1.2, 11.0]])
    with pytest.raises(ValueError, match="no statistics of its commands"):
        ActionLimits.of_data(arm())


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_rate": 0}, "max_rate 0 must be positive"),
        ({"low": float("nan")}, "low nan is no finite number"),
        ({"max_rate": "1e-2"}, "max_rate '1e-2' is no finite number"),
        ({"max_jerk": [1.0, -2.0]}, "max_jerk -2.0 must be positive"),
        ({"low": [0.0]}, "low has 1 numbers, 'arm' has 2 action dims"),
        ({"low": 1, "high": [2, 0]}, "joint_1: low 1 is above high 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits, message):
    with pytest.raises(ValueError, match=message):
        ActionGuard(ActionLimits(**limits), arm())


def test_a_rate_of_what_has_no_speed_is_refused():
    with pytest.raises(ValueError, match="joint_0 is relative to the state"):
        ActionGuard(ActionLimits(max_rate=1), arm(("relative", "absolute")))
    turning = arm(("absolute",) * 3, rotations=[RotationGroup([0, 1, 2], [], "euler_xyz")])
    with pytest.raises(ValueError, match="joint_0 is part of a rotation"):
        ActionGuard(ActionLimits(max_jerk=1), turning)
