"""What a model learns of recorded numbers: absolute, relative, delta, rotations; and that all of it comes back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from priorvla.configuration.embodiment import Embodiment, NormalizationMode, RotationGroup
from priorvla.configuration.rotations import REPRESENTATIONS, to_matrix

ARM = Embodiment("arm", ["x", "y", "grip"], ["grip", "x", "y", "force"], 20.0, gripper_dims=[2])
H = 9


def rotation_values(random: np.random.Generator, shape: tuple[int, ...], representation: str) -> np.ndarray:
    """Numbers of rotations of less than half a turn and away from gimbal lock, so that they come back as they were."""
    if representation in ("axis_angle", "euler_xyz"):
        return random.uniform(-1.4, 1.4, (*shape, 3))
    rotation = Rotation.from_rotvec(random.uniform(-1.4, 1.4, (*shape, 3)).reshape(-1, 3))
    values = {
        "quaternion_xyzw": rotation.as_quat,
        "quaternion_wxyz": lambda: rotation.as_quat(scalar_first=True),
        "rotation_6d": lambda: rotation.as_matrix()[..., :2].swapaxes(-1, -2).reshape(-1, 6),
    }[representation]()
    return values.reshape(*shape, -1)


def mixed_body(representation: str, kind: str, rotation_kind: str) -> Embodiment:
    """Two positions, a rotation in the middle, a gripper, one more joint; the state has them in another order."""
    turn = [f"r{index}" for index in range(REPRESENTATIONS[representation])]
    rotated = len(turn)
    return Embodiment(
        "mixed",
        ["x", "y", *turn, "grip", "joint"],
        ["joint", *turn, "x", "y", "grip"],
        10.0,
        gripper_dims=[2 + rotated],
        learned_kinds=[kind, "absolute", *[rotation_kind] * rotated, "absolute", kind],
        rotations=[RotationGroup(list(range(2, 2 + rotated)), list(range(1, 1 + rotated)), representation)],
    )


def mixed_data(representation: str, windows: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(B, H, D) actions and (B, S) states of `mixed_body`; the rotation drifts away from the state's."""
    random = np.random.default_rng(seed)
    turn = rotation_values(random, (windows, H), representation)
    state_turn = rotation_values(random, (windows,), representation)
    if representation.startswith("quaternion"):  # recorded without jumps of sign, as a state's log is
        for step in range(H):
            before = state_turn if step == 0 else turn[:, step - 1]
            turn[:, step] *= np.where((turn[:, step] * before).sum(-1, keepdims=True) < 0, -1, 1)
    plain, state = random.normal(size=(windows, H, 4)), random.normal(size=(windows, 4))
    actions = np.concatenate([plain[..., :2], turn, plain[..., 2:]], axis=-1)
    return actions.astype(np.float32), np.concatenate([state[:, :1], state_turn, state[:, 1:]], -1).astype(np.float32)


def test_relative_is_the_difference_to_the_state_of_the_same_name_at_the_first_step() -> None:
    body = ARM.learning("relative")
    learned = body.learned_actions([[1.0, 2.0, 0.5], [3.0, 4.0, 0.7]], reference=[9.0, 10.0, 20.0, 99.0])
    np.testing.assert_allclose(learned, [[-9, -18, 0.5], [-7, -16, 0.7]])
    assert body.learned_kinds == ["relative", "relative", "absolute"] and body.reference_dims == [1, 2, 0]


def test_delta_is_the_step_from_one_action_to_the_next_and_the_first_from_the_state() -> None:
    body = ARM.learning("delta")
    learned = body.learned_actions([[1.0, 2.0, 0.5], [3.0, 5.0, 0.7], [3.5, 5.0, 0.9]], [9.0, 10.0, 20.0, 99.0])
    np.testing.assert_allclose(learned, [[-9, -18, 0.5], [2, 3, 0.7], [0.5, 0, 0.9]])


@pytest.mark.parametrize("mode", list(NormalizationMode))
@pytest.mark.parametrize("kind", ["absolute", "relative", "delta"])
@pytest.mark.parametrize("rotation_kind", ["absolute", "relative", "delta"])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
def test_a_mixed_body_comes_back_from_what_is_learned_of_it(
    representation: str, rotation_kind: str, kind: str, mode: str
) -> None:
    body = mixed_body(representation, kind, rotation_kind)
    actions, states = mixed_data(representation)
    body = replace(body, action_normalization=NormalizationMode(mode)).with_statistics(states, actions)
    assert body.needs_reference == ((kind, rotation_kind) != ("absolute", "absolute"))
    normalized = body.normalize_actions(actions, states)
    assert normalized.shape == (40, H, 10) == (*actions.shape[:2], body.model_action_dim)
    back = body.denormalize_actions(normalized, states)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, actions, atol=1e-5)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@pytest.mark.parametrize("kind", ["absolute", "relative", "delta"])
def test_the_data_loaders_way_gives_the_same_numbers_as_the_checked_one(representation: str, kind: str) -> None:
    body, (actions, states) = mixed_body(representation, kind, kind), mixed_data(representation)
    body = body.with_statistics(states, actions)
    expected_actions, expected_states = body.normalize_actions(actions, states), body.normalize_state(states)
    normalizer = body.batch_normalizer()
    fast = normalizer.actions(actions.copy(), states)
    assert fast.dtype == np.float32 == normalizer.states(states.copy()).dtype
    np.testing.assert_allclose(fast, expected_actions, atol=2e-5)
    np.testing.assert_allclose(normalizer.states(states.copy()), expected_states, atol=2e-5)
    assert body.batch_normalizer() is normalizer


@pytest.mark.parametrize("kind", ["absolute", "relative", "delta"])
def test_without_rotations_it_is_the_same_too_and_writes_into_its_input(kind: str) -> None:
    random = np.random.default_rng(0)
    actions, states = random.normal(size=(30, H, 3)).astype(np.float32), random.normal(size=(30, 4)).astype(np.float32)
    body = ARM.learning(kind).with_statistics(states, actions)
    expected = body.normalize_actions(actions, states)
    given = actions.copy()
    np.testing.assert_allclose(body.batch_normalizer().actions(given, states), expected, atol=2e-5)
    np.testing.assert_allclose(given, expected, atol=2e-5)


def test_a_relative_rotation_is_the_turn_seen_from_the_states_own_axes() -> None:
    body = mixed_body("quaternion_xyzw", "absolute", "relative")
    actions, states = mixed_data("quaternion_xyzw")
    learned = to_matrix(body.learned_actions(actions, states)[..., 2:8], "rotation_6d")
    first = Rotation.from_quat(states[:, 1:5])
    expected = first.inv() * Rotation.from_quat(actions[:, 4, 2:6])
    np.testing.assert_allclose(learned[:, 4], expected.as_matrix(), atol=1e-6)


def test_a_robot_that_stays_where_it_is_learns_nothing_but_zeros() -> None:
    body = mixed_body("quaternion_wxyz", "relative", "relative")
    actions, states = mixed_data("quaternion_wxyz")
    joint, turn, position = states[:, :1], states[:, 1:5], states[:, 5:7]
    held = np.concatenate([position, -turn, actions[:, 0, 6:7], joint], axis=-1)[:, None]  # the other sign
    learned = body.learned_actions(held, states)[:, 0]
    np.testing.assert_allclose(learned[:, [0, 9]], 0, atol=1e-6)
    np.testing.assert_allclose(learned[:, 2:8], np.tile([1, 0, 0, 0, 1, 0], (40, 1)), atol=1e-6)


def test_names_and_places_of_the_models_dims_follow_the_raw_ones() -> None:
    body = mixed_body("quaternion_xyzw", "absolute", "absolute")
    turn = [f"rotation0_{entry}" for entry in ("x1", "x2", "x3", "y1", "y2", "y3")]
    assert body.model_action_names == ["x", "y", *turn, "grip", "joint"]
    assert body.model_state_names == ["joint", *turn, "x", "y", "grip"]
    assert (body.action_dim, body.model_action_dim, body.state_dim, body.model_state_dim) == (8, 10, 8, 10)
    assert (ARM.model_action_names, ARM.model_state_dim) == (ARM.action_names, 4)


def test_a_rotation_may_stand_in_the_state_alone_or_in_scattered_dims() -> None:
    group = RotationGroup([], [3, 1, 0], "euler_xyz")
    body = Embodiment("arm", ["dx"], ["c", "b", "grip", "a"], 10.0, action_kinds=["delta"], rotations=[group])
    assert (body.model_action_dim, body.model_state_dim) == (1, 7)
    learned = body.learned_states([0.3, 0.2, 0.9, 0.1])
    np.testing.assert_allclose(learned[6], 0.9)
    expected = Rotation.from_euler("xyz", [0.1, 0.2, 0.3]).as_matrix()
    np.testing.assert_allclose(to_matrix(learned[:6], "rotation_6d"), expected, atol=1e-9)


def test_a_mask_of_raw_dims_counts_a_rotation_only_as_a_whole() -> None:
    body = mixed_body("axis_angle", "absolute", "absolute")
    assert body.model_action_mask(np.ones((2, 7))).all()
    mask = body.model_action_mask([True, False, True, True, False, True, True])
    assert mask.tolist() == [True, False, *[False] * 6, True, True]


@pytest.mark.parametrize("kind", ["relative", "delta"])
def test_a_state_that_is_needed_and_missing_is_asked_for(kind: str) -> None:
    body = replace(ARM.learning(kind), action_normalization=NormalizationMode.IDENTITY)
    message = f"'arm' learns {kind} actions from recorded absolute ones: pass the raw state \\(4 dims\\)"
    for convert in (body.normalize_actions, body.denormalize_actions, body.learned_actions):
        with pytest.raises(ValueError, match=message):
            convert(np.zeros((H, 3)))
    with pytest.raises(ValueError, match=r"states of shape \(3, 4\) for actions of shape \(2, 9, 3\)"):
        body.normalize_actions(np.zeros((2, H, 3)), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="4 state dims, got 3"):
        body.normalize_actions(np.zeros((H, 3)), np.zeros(3))


def test_numbers_that_are_no_rotation_name_the_dims() -> None:
    body = mixed_body("quaternion_xyzw", "absolute", "absolute")
    with pytest.raises(ValueError, match=r"'mixed': action dims \[2, 3, 4, 5\] is \[0.0, 0.0, 0.0, 0.0\]"):
        body.learned_actions(np.zeros((1, 8)))
    with pytest.raises(ValueError, match=r"'mixed': state dims \[1, 2, 3, 4\] is"):
        body.learned_states(np.zeros(8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"learned_kinds": ["relative"]}, "1 learned_kinds for 3"),
        ({"learned_kinds": ["relative", "sideways", "absolute"]}, "'sideways' is unknown"),
        ({"learned_kinds": ["relative"] * 3}, r"'grip' moves a gripper, which stays absolute.*learned_kinds\[2\]"),
        ({"reference_dims": [7, None, None]}, r"reference_dims\[0\]=7 is outside the 4"),
        (
            {"learned_kinds": ["relative", "relative", "absolute"], "reference_dims": [None, 2, None]},
            r"'x' cannot be learned as relative: no state dim.*reference_dims\[0\]",
        ),
        ({"rotations": [RotationGroup([0, 1], [], "axis_angle")]}, r"action_dims=\[0, 1\] must be 3 of the 3"),
        ({"rotations": [RotationGroup([], [], "axis_angle")]}, "neither action_dims nor state_dims"),
        ({"rotations": [RotationGroup([], [0, 1, 2], "turns")]}, "'turns' is unknown, use one of quaternion_xyzw"),
        ({"rotations": [RotationGroup([0, 1, 2], [], "axis_angle")]}, "dim 2 moves a gripper"),
        ({"rotations": [RotationGroup([], [0, 1, 1], "axis_angle")]}, "name one twice"),
        ({"state_minimum_range": [1.0]}, "1 state_minimum_range entries for 4 state"),
    ],
)
def test_what_does_not_invert_is_refused_with_the_dim(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"embodiment 'arm': .*{message}"):
        replace(ARM, **fields)


def test_a_rotation_is_of_one_kind_and_relative_only_to_a_state() -> None:
    body = mixed_body("axis_angle", "absolute", "absolute")
    kinds = [*body.learned_kinds]
    kinds[3] = "relative"
    with pytest.raises(ValueError, match="'r1' is part of a rotation, whose dims must all be of one kind"):
        replace(body, learned_kinds=kinds)
    kinds[2:5] = ["relative"] * 3
    with pytest.raises(ValueError, match="'r0' cannot be learned as relative: its rotation has no state_dims"):
        replace(body, learned_kinds=kinds, rotations=[RotationGroup([2, 3, 4], [], "axis_angle")])


def test_states_are_compared_by_index_only_where_no_name_is_the_same() -> None:
    assert Embodiment("arm", ["a", "b"], ["s", "t"], 10.0).reference_dims == [0, 1]
    assert Embodiment("arm", ["a", "b"], ["b", "t"], 10.0).reference_dims == [None, 0]
    assert Embodiment("arm", ["a", "b"], ["s"], 10.0).reference_dims == [None, None]


def test_what_was_not_given_follows_when_a_body_is_changed() -> None:
    changed = replace(ARM, action_kinds=["delta"] * 3)
    assert changed.learned_kinds == ["delta"] * 3 and not changed.needs_reference
    assert replace(ARM, state_names=[]).reference_dims == [None] * 3


def test_the_arms_of_a_body_whose_joints_are_called_alike_are_compared_each_with_itself() -> None:
    names = ["waist", "elbow", "waist", "elbow"]
    body = Embodiment("two arms", names, names, 10.0).learning("relative")
    assert body.reference_dims == [0, 1, 2, 3]
    state = np.array([1.0, 2.0, 30.0, 40.0])
    assert not body.learned_actions(state[None], state).any()


def test_a_changed_body_keeps_what_it_learns_and_loses_the_statistics_of_other_numbers() -> None:
    names = ["x", "a", "b", "c"]
    body = Embodiment("arm", names, names, 10.0).learning("relative")
    body = body.with_statistics(np.zeros((5, 4)), np.zeros((5, H, 4)))
    changed = body.changed({"minimum_range": 0.5})
    assert changed.learned_kinds == ["relative"] * 4 and changed.minimum_range == 0.5
    turn = {"action_dims": [1, 2, 3], "state_dims": [1, 2, 3], "representation": "axis_angle"}
    assert body.changed({"rotations": [turn]}).model_action_dim == 7, "statistics of 4 dims are not in the way"
    assert body.changed({"learned_kinds": "delta"}).learned_kinds == ["delta"] * 4
    assert Embodiment("arm", names, names, 10.0).changed({"action_kinds": ["delta"] * 4}).learned_kinds == ["delta"] * 4
    with pytest.raises(ValueError, match="unknown key 'minimal_range', did you mean 'minimum_range'"):
        body.changed({"minimal_range": 1.0})
