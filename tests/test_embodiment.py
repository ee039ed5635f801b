"""Embodiments: normalisation that inverts, statistics that cannot explode, errors that name the dimension."""

import json
from dataclasses import replace

import numpy as np
import pytest

from priorvla.configuration.embodiment import (
    Embodiment,
    FeatureStatistics,
    NormalizationMode,
    RotationGroup,
    load_embodiments,
    save_embodiments,
)

ARM = Embodiment("arm", ["x", "y", "grip"], ["q"], 20.0, gripper_dims=[2])


def fitted(mode: str, values: np.ndarray, **fields) -> Embodiment:
    body = replace(ARM, action_normalization=NormalizationMode(mode), **fields)
    return body.with_statistics(np.zeros((len(values), 1)), values)


@pytest.fixture
def actions() -> np.ndarray:
    return np.random.default_rng(0).normal([0.0, 5.0, -2.0], [1.0, 0.3, 20.0], size=(4000, 3)).astype(np.float32)


@pytest.mark.parametrize("mode", list(NormalizationMode))
def test_denormalising_undoes_normalising(mode, actions):
    body = fitted(mode, actions)
    back = body.denormalize_actions(body.normalize_actions(actions))
    np.testing.assert_allclose(back, actions, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("mode", "low", "high"),
    [("min_max", 0, 100), ("quantile", 1, 99), ("quantile_10_90", 10, 90)],
)
def test_a_range_mode_maps_its_percentiles_to_minus_one_and_one(mode, low, high, actions):
    normalized = fitted(mode, actions).normalize_actions(np.percentile(actions, [low, high], axis=0))
    np.testing.assert_allclose(normalized, [[-1] * 3, [1] * 3], atol=1e-4)


def test_mean_std_gives_zero_mean_and_unit_deviation(actions):
    normalized = fitted("mean_std", actions).normalize_actions(actions)
    np.testing.assert_allclose(normalized.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(normalized.std(0), 1, atol=1e-3)


def test_identity_needs_no_statistics():
    body = replace(ARM, action_normalization=NormalizationMode.IDENTITY)
    assert body.normalize_actions([1.0, 2.0, 3.0]).tolist() == [1.0, 2.0, 3.0]


def test_a_mode_without_statistics_says_how_to_fit_them():
    with pytest.raises(ValueError, match=r"'arm' has no action_statistics.*with_statistics"):
        ARM.normalize_actions([1.0, 2.0, 3.0])


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile", "quantile_10_90"])
def test_a_dimension_that_did_not_move_cannot_explode_openpi_814(mode):
    still = np.zeros((100, 3))
    body = fitted(mode, still, minimum_range=0.2)
    assert np.abs(body.normalize_actions([0.05, -0.05, 0.1])).max() <= 1.0


def test_a_minimum_range_can_differ_by_dimension():
    body = fitted("min_max", np.zeros((10, 3)), minimum_range=[1.0, 2.0, 4.0])
    np.testing.assert_allclose(body.normalize_actions([0.5, 0.5, 0.5]), [1.0, 0.5, 0.25])


def test_statistics_are_exact(actions):
    statistics = FeatureStatistics.from_values(actions)
    np.testing.assert_allclose(statistics.mean, actions.astype(np.float64).mean(0))
    np.testing.assert_allclose(statistics.q99, np.quantile(actions.astype(np.float64), 0.99, axis=0))
    assert statistics.count == 4000 and statistics.dim == 3


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.zeros(3)])
def test_statistics_of_nothing_are_refused(values):
    with pytest.raises(ValueError, match=r"shape \(N, dim\) with N > 0"):
        FeatureStatistics.from_values(values)


def test_a_value_that_is_no_number_is_named_by_its_dimension(actions):
    actions[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"'arm': action is nan at index \(7, 2\) \(dim 'grip'\)"):
        ARM.with_statistics(np.zeros((4000, 1)), actions)


def test_other_dims_are_refused_with_both_counts(actions):
    with pytest.raises(ValueError, match="'arm' has 3 action dims, got 4"):
        fitted("mean_std", actions).normalize_actions(np.zeros((2, 4)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": ""}, "non-empty"),
        ({"action_names": []}, "action_names is empty"),
        ({"control_rate": 0.0}, "control_rate must be positive"),
        ({"action_kinds": ["absolute"]}, "1 action_kinds for 3"),
        ({"action_kinds": ["absolute", "sideways", "delta"]}, "'sideways' is unknown"),
        ({"gripper_dims": [3]}, "gripper dim 3"),
        ({"minimum_range": 0.0}, "minimum_range must be positive"),
        ({"minimum_range": [1.0]}, "1 minimum_range entries"),
        ({"action_normalization": "z-score"}, "z-score"),
    ],
)
def test_an_impossible_embodiment_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        replace(ARM, **fields)


def test_statistics_of_other_dims_are_refused(actions):
    statistics = FeatureStatistics.from_values(actions[:, :2])
    with pytest.raises(ValueError, match="action_statistics have 2 dims, the action has 3"):
        replace(ARM, action_statistics=statistics)


def test_embodiments_survive_their_file_in_order(actions, tmp_path):
    bodies = [fitted("quantile", actions), replace(ARM, name="other", cameras=["wrist"])]
    file = save_embodiments(bodies, tmp_path)
    assert load_embodiments(tmp_path) == bodies == load_embodiments(file)


VERSION_1 = """{"version": 1, "embodiments": [{
  "name": "arm", "action_names": ["x", "y", "grip"], "state_names": ["q", "r"], "control_rate": 20.0,
  "action_kinds": ["delta", "absolute", "absolute"], "gripper_dims": [2], "cameras": ["front"],
  "action_normalization": "quantile", "state_normalization": "mean_std", "minimum_range": [0.5, 0.5, 0.25],
  "action_statistics": {"mean": [0, 0, 0.5], "std": [1, 1, 0.5], "min": [-2, -4, 0], "max": [2, 4, 1],
    "q01": [-1, -3, 0], "q10": [-0.8, -2, 0], "q90": [0.8, 2, 1], "q99": [1, 3, 1], "count": 7},
  "state_statistics": {"mean": [1, 0], "std": [2, 0.001], "min": [-2, 0], "max": [4, 0], "q01": [-2, 0],
    "q10": [-1, 0], "q90": [3, 0], "q99": [4, 0], "count": 7}
}]}"""


def test_a_checkpoint_of_version_1_normalises_as_it_did(tmp_path):
    (tmp_path / "embodiments.json").write_text(VERSION_1)
    (body,) = load_embodiments(tmp_path)
    assert body.learned_kinds == body.action_kinds == ["delta", "absolute", "absolute"]
    assert not body.needs_reference and body.rotations == []
    np.testing.assert_allclose(body.normalize_actions([0.5, 3.0, 1.0]), [0.5, 1.0, 1.0])
    np.testing.assert_allclose(body.normalize_state([3.0, 0.25]), [1.0, 2.0])  # the floor is the least of the action's
    save_embodiments([body], tmp_path)
    assert json.loads((tmp_path / "embodiments.json").read_text())["version"] == 2
    assert load_embodiments(tmp_path) == [body]


def test_everything_of_a_body_survives_its_file(tmp_path):
    names = ["x", "a", "b", "c", "grip"]
    body = Embodiment(
        "turning",
        names,
        names[:4],
        5.0,
        gripper_dims=[4],
        learned_kinds=["delta", "relative", "relative", "relative", "absolute"],
        reference_dims=[0, None, None, None, None],
        rotations=[RotationGroup([1, 2, 3], [1, 2, 3], "axis_angle")],
        state_minimum_range=[0.1, 0.2, 0.3, 0.4],
    ).with_statistics(np.zeros((4, 4)), np.zeros((4, 3, 5)))
    save_embodiments([body], tmp_path)
    assert load_embodiments(tmp_path) == [body]
    assert body.action_statistics.dim == 8 and body.action_statistics.count == 12


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile", "quantile_10_90"])
def test_states_have_a_minimum_range_of_their_own_by_dimension(mode):
    body = replace(ARM, state_names=["q", "r"], state_minimum_range=[2.0, 4.0], minimum_range=[1.0, 2.0, 4.0])
    body = replace(body, state_normalization=NormalizationMode(mode)).with_statistics(
        np.zeros((9, 2)), np.zeros((9, 3))
    )
    np.testing.assert_allclose(body.normalize_state([1.0, 1.0]), [1.0, 0.5])
    np.testing.assert_allclose(body.normalize_actions([0.5, 0.5, 0.5]), [1.0, 0.5, 0.25])
    shared = replace(body, state_minimum_range=None)
    np.testing.assert_allclose(shared.normalize_state([0.5, 0.5]), [1.0, 1.0])


def test_the_10_90_mode_is_not_stretched_by_a_tenth_of_outliers():
    values = np.concatenate([np.linspace(-1, 1, 950), np.full(50, 1e4)])[:, None].repeat(3, axis=1)
    wide = fitted("min_max", values).normalize_actions([0.5] * 3)
    robust = fitted("quantile_10_90", values).normalize_actions([0.5] * 3)
    assert abs(wide[0]) > 0.99 and 0.3 < robust[0] < 0.7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(version=99), "version 99 is not 1 to 2: update priorvla"),
        (lambda content: content.update(version=0), "version 0"),
        (lambda content: content["embodiments"][0].update(colour="red"), "unknown key 'colour'"),
        (lambda content: content["embodiments"][0].pop("control_rate"), "'control_rate' is missing"),
        (lambda content: content.pop("embodiments"), "embodiments"),
    ],
)
def test_a_damaged_file_is_named_with_its_key(tmp_path, change, message):
    file = save_embodiments([ARM], tmp_path)
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"embodiments\.json.*{message}"):
        load_embodiments(tmp_path)
