"""Windows over trajectories: what a batch holds, what is drawn, and which sources do not go together."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from priorvla.configuration.embodiment import Embodiment, NormalizationMode
from priorvla.configuration.rotations import RotationGroup
from priorvla.training.data import embodiment_fitting, mixture_sampler
from priorvla.training.data.trajectory import Trajectory, TrajectorySource
from priorvla.training.data.trajectory_dataset import (
    MixtureSampler,
    TrajectoryDataset,
    expert_dims,
    fit_embodiments,
    split_episodes,
)

H, D, S = 4, 7, 5


def make_source(body, lengths, name="demos", seed=0) -> TrajectorySource:
    random = np.random.default_rng(seed)
    trajectories = [
        Trajectory(
            states=random.normal(size=(length, body.state_dim)),
            actions=random.normal(size=(length, body.action_dim)),
            task="open the drawer",
            episode_index=index,
            timestamps=np.arange(length) / body.control_rate,
            frames=None,
            source=f"{name}/data.parquet",
        )
        for index, length in enumerate(lengths)
    ]
    return TrajectorySource(Path(name), "0" * 64, body, trajectories)


def quantile_normalized(values, statistics):
    low, high = np.array(statistics.q01), np.array(statistics.q99)
    return (values - (low + high) / 2) / np.maximum((high - low) / 2, 0.005)


def by_hand(body, trajectory, steps) -> dict:
    """Padded actions, states and mask of `steps` of a trajectory, which may lie before its start or beyond its end."""
    actions, states = np.zeros((len(steps), D)), np.zeros((len(steps), S))
    mask = np.zeros((len(steps), D), dtype=bool)
    for row, step in enumerate(steps):
        if 0 <= step < len(trajectory):
            actions[row, : body.action_dim] = quantile_normalized(trajectory.actions[step], body.action_statistics)
            states[row, : body.state_dim] = quantile_normalized(trajectory.states[step], body.state_statistics)
            mask[row, : body.action_dim] = True
    return {"actions": actions, "states": states, "action_mask": mask}


def close(tensor, array) -> bool:
    return np.allclose(tensor.numpy(), array, atol=1e-5)


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 3])
def test_a_batch_of_two_bodies_equals_indexing_by_hand(bodies, stride):
    sources = [make_source(bodies[0], [5, 1, 9]), make_source(bodies[1], [7, 3], seed=1)]
    dataset = TrajectoryDataset(sources, bodies, H, history_size=3, stride=stride)
    starts = [
        (index, trajectory, step)
        for index, source in enumerate(sources)
        for trajectory in source.trajectories
        for step in range(0, len(trajectory), stride)
    ]
    assert len(dataset) == len(starts)
    chosen = np.random.default_rng(0).permutation(len(starts)).tolist()
    batch = dataset.__getitems__(chosen)
    assert {key: tuple(value.shape[1:]) for key, value in batch.items()} == {
        "actions": (H, D),
        "action_mask": (H, D),
        "states": (H, S),
        "state": (S,),
        "embodiment_ids": (),
        "history_actions": (3, D),
        "history_states": (3, S),
        "history_mask": (3, D),
    }
    for row, window in enumerate(chosen):
        index, trajectory, step = starts[window]
        ahead = by_hand(bodies[index], trajectory, range(step, step + H))
        behind = by_hand(bodies[index], trajectory, range(step - 3, step))
        assert batch["embodiment_ids"][row] == index
        assert close(batch["state"][row], ahead["states"][0])
        for key, past in (
            ("actions", "history_actions"),
            ("states", "history_states"),
            ("action_mask", "history_mask"),
        ):
            assert close(batch[key][row], ahead[key]) and close(batch[past][row], behind[key])


def test_one_window_is_a_row_of_its_batch_and_says_where_it_starts(bodies):
    dataset = TrajectoryDataset([make_source(bodies[0], [5, 8])], bodies, H, stride=2)
    batch = dataset.__getitems__([4, 2])
    assert all(torch.equal(dataset[4][key], value[0]) for key, value in batch.items())
    trajectory, step = dataset.frame_of([0, 2, 3, 6])
    assert trajectory.tolist() == [0, 0, 1, 1] and step.tolist() == [0, 4, 0, 6]


def test_the_checkpoints_statistics_normalise_and_not_the_sources_own(bodies):
    source = make_source(bodies[0], [6])
    plain = replace(bodies[0], action_normalization=NormalizationMode.IDENTITY)
    batch = TrajectoryDataset([source], [bodies[1], plain], H)[0]
    assert batch["embodiment_ids"] == 1
    assert close(batch["actions"][:, :4], source.trajectories[0].actions[:H])


def test_a_window_outside_the_dataset_is_an_index_error(bodies):
    dataset = TrajectoryDataset([make_source(bodies[0], [5, 8])], bodies, H)
    for index in (13, -1):
        with pytest.raises(IndexError, match="of 13"):
            dataset.__getitems__([0, index])


def test_a_body_without_states_has_windows_of_actions_alone(bodies):
    blind = replace(bodies[0], state_names=[], reference_dims=[None] * 4, state_statistics=None)
    batch = TrajectoryDataset([make_source(blind, [6])], [blind], H).__getitems__([0, 5])
    assert batch["states"].shape == (2, H, 0) and batch["state"].shape == (2, 0)
    assert batch["action_mask"].sum((1, 2)).tolist() == [16, 4]


# --- what is learned --------------------------------------------------------------------------------------------------


def follower(name="follower", kind="absolute") -> Embodiment:
    """Three joints whose actions are targets of the joints' own states, learned as `kind`."""
    joints = ["shoulder", "elbow", "wrist"]
    plain = NormalizationMode.IDENTITY
    body = Embodiment(name, joints, joints, 10.0, action_normalization=plain, state_normalization=plain)
    return body if kind == "absolute" else body.learning(kind)


def learned_by_hand(trajectory, step, size, kind) -> np.ndarray:
    """`size` actions from `step` on as differences: to the state at `step`, or to the action before."""
    actions, state = trajectory.actions[step : step + size], trajectory.states[step]
    if kind == "relative":
        return actions - state
    return np.diff(np.concatenate([state[None], actions]), axis=0)


@pytest.mark.parametrize("kind", ["relative", "delta"])
def test_learned_actions_are_compared_with_the_raw_state_at_a_windows_first_step(kind):
    body = follower(kind=kind)
    source = make_source(body, [6, 9])
    dataset = TrajectoryDataset([source], [body], H, history_size=3)
    trajectory, batch = source.trajectories[1], dataset.__getitems__([6, 8, 13])  # steps 0, 2 and 7 of the second
    for row, (step, ahead) in enumerate(((0, 4), (2, 4), (7, 2))):
        assert close(batch["actions"][row, :ahead], learned_by_hand(trajectory, step, ahead, kind))
        assert not batch["actions"][row, ahead:].any() and not batch["action_mask"][row, ahead:].any()
        assert close(batch["states"][row, :ahead], trajectory.states[step : step + ahead])  # never relative
        assert np.array_equal(dataset.first_states([6, 8, 13])[row], trajectory.states[step])
    for row, (step, behind) in enumerate(((0, 0), (2, 2), (7, 3))):
        past = batch["history_actions"][row, 3 - behind :]
        assert close(past, learned_by_hand(trajectory, step - behind, behind, kind))
        assert not batch["history_actions"][row, : 3 - behind].any()


@pytest.mark.parametrize("kind", ["relative", "delta"])
def test_statistics_of_learned_actions_are_those_of_all_steps_of_all_windows(kind):
    body = follower(kind=kind)
    sources = [make_source(body, [6, 9]), make_source(body, [3], seed=1)]
    (fitted,) = fit_embodiments(sources, chunk_size=H)
    steps = [
        learned_by_hand(trajectory, step, H, kind)
        for source in sources
        for trajectory in source.trajectories
        for step in range(len(trajectory))
    ]
    values = np.concatenate(steps)
    statistics = fitted.action_statistics
    assert statistics.count == len(values) and fitted.state_statistics.count == 18
    for name, expected in (("mean", values.mean(0)), ("std", values.std(0)), ("max", values.max(0))):
        assert np.allclose(getattr(statistics, name), expected, atol=1e-6), name
    assert np.allclose(statistics.q99, np.quantile(values, 0.99, axis=0), atol=1e-6)
    with pytest.raises(ValueError, match=r"'follower' learns relative or delta actions.*chunk_size="):
        fit_embodiments(sources)


def test_statistics_do_not_depend_on_the_blocks_in_which_they_are_fitted(bodies, monkeypatch):
    sources = [make_source(bodies[0], [9, 30, 2]), make_source(follower(kind="delta"), [17, 5])]
    at_once = fit_embodiments(sources, chunk_size=H)
    monkeypatch.setattr(embodiment_fitting, "BLOCK_VALUES", 40)
    for whole, part in zip(at_once, fit_embodiments(iter(sources), chunk_size=H), strict=True):
        for label in ("action_statistics", "state_statistics"):
            ours, theirs = (np.array(list(vars(getattr(body, label)).values())[:-1]) for body in (whole, part))
            assert np.allclose(ours, theirs, atol=1e-9)


def test_a_rotation_is_gathered_padded_and_counted_in_the_models_six_dims():
    turning = Embodiment(
        name="turning",
        action_names=["x", "qx", "qy", "qz", "qw"],
        state_names=["x"],
        control_rate=10.0,
        rotations=[RotationGroup(action_dims=[1, 2, 3, 4], state_dims=[], representation="quaternion_xyzw")],
    )
    source = make_source(turning, [8])
    for trajectory in source.trajectories:
        trajectory.actions[:, 1:] /= np.linalg.norm(trajectory.actions[:, 1:], axis=1, keepdims=True)
    fitted = fit_embodiments([source])
    assert expert_dims(fitted)["action_dims"] == [7] and fitted[0].action_statistics.dim == 7
    batch = TrajectoryDataset([source], fitted, H).__getitems__([2])
    assert batch["actions"].shape == (1, H, 7) and batch["action_mask"].all()
    assert close(batch["actions"][0], fitted[0].normalize_actions(source.trajectories[0].actions[2 : 2 + H]))


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_without_weights_an_epoch_is_a_shuffle_that_seed_and_epoch_determine(bodies):
    dataset = TrajectoryDataset([make_source(bodies[0], [30])], bodies, H)

    def order(seed, epoch):
        sampler = MixtureSampler(dataset, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert sorted(order(0, 0)) == list(range(30))
    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}) == 6


@pytest.mark.parametrize(("windows", "step"), [(30, 8), (32, 8), (3, 8), (30, 1)])
def test_the_last_step_of_an_epoch_is_filled_up_with_its_first_windows(bodies, windows, step):
    dataset = TrajectoryDataset([make_source(bodies[0], [windows])], bodies, H)
    epoch = list(MixtureSampler(dataset, seed=0))
    filled = list(sampler := MixtureSampler(dataset, 0, step))
    assert len(filled) == len(sampler) == -(-windows // step) * step
    assert filled == (epoch * step)[: len(filled)]


def test_with_weights_a_source_is_drawn_by_its_weight_and_its_windows_evenly(bodies):
    sources = [make_source(bodies[0], [400] * 5), make_source(bodies[1], [10], seed=1)]
    sampler = MixtureSampler(TrajectoryDataset(sources, bodies, H, weights=[1, 3]), seed=0)
    drawn = np.array(list(sampler))
    assert len(drawn) == len(sampler) == 2010
    assert (drawn >= 2000).mean() == pytest.approx(0.75, abs=0.04)
    frequency = np.bincount(drawn[drawn >= 2000] - 2000, minlength=10) / (drawn >= 2000).sum()
    assert np.allclose(frequency, 0.1, atol=0.03)
    again = list(sampler)
    sampler.set_epoch(1)
    assert again == drawn.tolist() != list(sampler)


@pytest.fixture
def small_pools(monkeypatch):
    """Pools of 64 windows, of blocks of 8: what a store of millions of windows is drawn by."""
    monkeypatch.setattr(mixture_sampler, "POOL_WINDOWS", 64)
    monkeypatch.setattr(mixture_sampler, "BLOCK_WINDOWS", 8)
    monkeypatch.setattr(mixture_sampler, "LEAST_BLOCKS", 4)


def test_an_epoch_of_many_pools_shows_every_window_once_and_few_places_at_a_time(bodies, small_pools):
    dataset = TrajectoryDataset([make_source(body, [500, 300]) for body in bodies], bodies, H)
    drawn = list(MixtureSampler(dataset, seed=0))
    assert sorted(drawn) == list(range(1600))
    pools = np.array(drawn).reshape(-1, 64) // 8
    places = [len(set(pool.tolist())) for pool in pools]
    assert max(places) < 30  # a uniform shuffle shows about 55 of the 200
    assert np.mean([len(set((pool >= 100).tolist())) for pool in pools]) > 1.9  # both bodies in almost every pool


def test_of_a_source_that_weighs_little_an_epoch_takes_windows_from_all_over_it_and_none_twice(bodies, small_pools):
    sources = [make_source(bodies[0], [800]), make_source(bodies[1], [800], seed=1)]
    sampler = MixtureSampler(TrajectoryDataset(sources, bodies, H, weights=[1, 9]), seed=0)
    drawn = np.array(list(sampler))
    little, much = drawn[drawn < 800], drawn[drawn >= 800] - 800
    assert len(drawn) == 1600 and len(little) == len(set(little.tolist())) == 160
    assert np.histogram(little, bins=8, range=(0, 800))[0].tolist() == pytest.approx([20] * 8, abs=8)
    assert set(np.bincount(much, minlength=800).tolist()) == {1, 2}
    sampler.set_epoch(1)
    assert set(little.tolist()) != {window for window in sampler if window < 800}


def test_a_source_without_episodes_is_never_drawn_whatever_its_weight(bodies):
    sources = [make_source(bodies[0], [5]), make_source(bodies[0], []), make_source(bodies[1], [3])]
    sampler = MixtureSampler(TrajectoryDataset(sources, bodies, H, weights=[1, 5, 1]), seed=0)
    assert np.bincount(list(sampler), minlength=8)[:5].sum() == 4


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_weights_that_are_not_one_positive_number_a_source_are_refused(bodies, weights):
    sources = [make_source(body, [5]) for body in bodies]
    with pytest.raises(ValueError, match=r"weights=\[1.0.*must be positive.*2 sources"):
        TrajectoryDataset(sources, bodies, H, weights=weights)


# --- sources ----------------------------------------------------------------------------------------------------------


def test_statistics_are_fitted_over_all_sources_of_a_body(bodies):
    sources = [make_source(bodies[0], [9]), make_source(bodies[1], [8]), make_source(bodies[0], [5, 6], seed=1)]
    small, large = fit_embodiments(sources)
    assert (small.name, large.name) == ("small", "large")
    steps = np.concatenate([t.actions for source in (sources[0], sources[2]) for t in source.trajectories])
    assert small.action_statistics.count == 20 and large.action_statistics.count == 8
    assert np.allclose(small.action_statistics.mean, steps.mean(0), atol=1e-6)
    assert expert_dims([small, large]) == {
        "embodiments": ["small", "large"],
        "action_dims": [4, 7],
        "state_dims": [3, 5],
    }


def test_two_descriptions_of_one_body_that_disagree_name_the_dataset_the_key_and_both_values(bodies):
    faster = replace(bodies[0], control_rate=50.0)
    with pytest.raises(ValueError, match=r"other: embodiment 'small' has control_rate=50.0, another source has 10.0"):
        fit_embodiments([make_source(bodies[0], [5]), make_source(faster, [5], name="other")])


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("action_names", ["a1", "a0", "a2", "a3"], "action_names=['a1', 'a0', 'a2', 'a3']"),
        ("state_names", ["s2", "s1", "s0"], "state_names=['s2', 's1', 's0']"),
        ("control_rate", 50.0, "control_rate=50.0"),
        ("action_kinds", ["delta"] * 4, "action_kinds=['delta', 'delta', 'delta', 'delta']"),
        ("gripper_dims", [3], "gripper_dims=[3]"),
    ],
)
def test_numbers_that_mean_something_else_are_refused_by_datasets_and_by_checkpoints(bodies, key, value, shown):
    other = make_source(replace(bodies[0], **{key: value}), [5], name="other")
    with pytest.raises(ValueError, match=f"other: embodiment 'small' has {re.escape(shown)}, another source has"):
        fit_embodiments([make_source(bodies[0], [5]), other])
    with pytest.raises(ValueError, match=f"other: .*{re.escape(shown)}, the checkpoint was trained with"):
        TrajectoryDataset([other], bodies, H)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("action_normalization", NormalizationMode.MEAN_STD, "has action_normalization='mean_std', .* has 'quantile'"),
        ("state_normalization", NormalizationMode.MIN_MAX, "has state_normalization='min_max', .* has 'quantile'"),
        ("minimum_range", 0.5, "has minimum_range=0.5, another source has 0.01"),
        (
            "cameras",
            ["front", "wrist"],
            r"has cameras=\['front', 'wrist'\], .* has \['front'\]: every camera has its slot",
        ),
    ],
)
def test_datasets_of_one_body_agree_on_normalisation_and_cameras(bodies, key, value, message):
    other = replace(bodies[0], **{key: value})
    with pytest.raises(ValueError, match=f"other: embodiment 'small' {message}"):
        fit_embodiments([make_source(bodies[0], [5]), make_source(other, [5], name="other")])
    TrajectoryDataset([make_source(other, [5])], bodies, H)  # the checkpoint's own are used


def test_motion_without_cameras_goes_with_demonstrations_of_the_same_body(bodies):
    blind = make_source(replace(bodies[0], cameras=[]), [5])
    for sources in ([blind, make_source(bodies[0], [5])], [make_source(bodies[0], [5]), blind]):
        assert fit_embodiments(sources)[0].cameras == ["front"]
    assert fit_embodiments([blind])[0].cameras == []


def test_of_a_long_list_only_the_entry_that_differs_is_shown():
    names = [f"joint_{index}" for index in range(30)]
    body = Embodiment("humanoid", names, [], 10.0)
    swapped = replace(body, action_names=[*names[:20], names[21], names[20], *names[22:]])
    with pytest.raises(ValueError, match=r"has action_names\[20\]='joint_21', another source has 'joint_20': give"):
        fit_embodiments([make_source(body, [5]), make_source(swapped, [5], name="other")])


def test_a_source_that_the_checkpoint_does_not_fit_names_folder_key_and_values(bodies):
    with pytest.raises(ValueError, match="demos: embodiment 'large' is not among the checkpoint's small"):
        TrajectoryDataset([make_source(bodies[1], [5])], bodies[:1], H)
    renamed = replace(bodies[1], name="small")
    with pytest.raises(ValueError, match=r"demos: embodiment 'small' has action_dim=7.*trained with 4"):
        TrajectoryDataset([make_source(renamed, [5])], bodies, H)


def test_no_trajectory_a_chunk_without_steps_and_a_stride_of_zero_are_refused(bodies):
    with pytest.raises(ValueError, match="at least one trajectory"):
        TrajectoryDataset([make_source(bodies[0], [])], bodies, H)
    for key, settings in (("chunk_size", {"chunk_size": 0}), ("stride", {"chunk_size": H, "stride": 0})):
        with pytest.raises(ValueError, match=f"{key}=0"):
            TrajectoryDataset([make_source(bodies[0], [5])], bodies, **settings)


def test_held_out_episodes_are_a_share_drawn_by_the_seed_and_one_always_stays(bodies):
    source = make_source(bodies[0], [5] * 10)

    def held(holdout, seed=0):
        training, rest = split_episodes(source, holdout, seed)
        indices = [[t.episode_index for t in part.trajectories] for part in (training, rest)]
        assert sorted(indices[0] + indices[1]) == list(range(10)) and training.fingerprint == source.fingerprint
        return indices[1]

    assert (len(held(0.0)), len(held(0.3)), len(held(0.99))) == (0, 3, 9)
    assert held(0.3) == held(0.3)
    assert any(held(0.3, seed) != held(0.3) for seed in (1, 2, 3))
