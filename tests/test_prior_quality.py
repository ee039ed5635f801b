"""The measures of a prior, on a tiny one that was trained a little and one that was not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from priorvla.configuration.embodiment import Embodiment, NormalizationMode
from priorvla.configuration.rotations import RotationGroup
from priorvla.training.body_windows import BodyWindows, draw_windows
from priorvla.training.data.trajectory_dataset import TrajectoryDataset, fit_embodiments
from priorvla.training.prior_quality import (
    PriorQuality,
    measure_latent,
    measure_prior,
    measure_resemblance,
    measure_smoothness,
)


@pytest.fixture(scope="module")
def waves(tiny_priors: Any) -> tuple[Any, TrajectoryDataset, TrajectoryDataset]:
    """A prior trained a little on waves of an arm of two dims, its training windows and held-out ones."""
    arm = tiny_priors.body("arm", 2)
    sources = [tiny_priors.motion(arm, "waves", 24, seed=0), tiny_priors.motion(arm, "waves", 10, seed=1)]
    model, bodies = tiny_priors.train_prior(sources[:1])
    training, held_out = (TrajectoryDataset([source], bodies, tiny_priors.CHUNK) for source in sources)
    return model, training, held_out


@pytest.fixture(scope="module")
def quality(waves) -> PriorQuality:
    model, training, held_out = waves
    return measure_prior(model, held_out, training)


@pytest.fixture(scope="module")
def untrained(waves, tiny_priors) -> PriorQuality:
    """Of the same architecture on the same windows."""
    _, training, held_out = waves
    model, _ = tiny_priors.make_prior([tiny_priors.motion(tiny_priors.body("arm", 2), "waves", 2, seed=0)])
    return measure_prior(model, held_out, training)


def test_training_improves_every_measure(quality, untrained):
    before, after = untrained.bodies[0], quality.bodies[0]
    assert after.velocity.own.value < 0.7 * before.velocity.own.value
    assert after.reconstruction.errors["reconstruction"].value < before.reconstruction.errors["reconstruction"].value
    assert not (before.resemblance.energy - after.resemblance.energy).spans_zero
    assert after.resemblance.energy.value < before.resemblance.energy.value
    assert after.resemblance.coverage.value > before.resemblance.coverage.value
    assert abs(np.log(after.smoothness.jerk_ratio)) < abs(np.log(before.smoothness.jerk_ratio))


def test_a_trained_prior_knows_more_than_mean_and_spread_and_uses_its_latent(quality, untrained):
    velocity = quality.bodies[0].velocity
    assert velocity.own.value < velocity.null.value < velocity.by_time["gaussian"].mean()
    assert velocity.by_time["gaussian"].mean() < velocity.by_time["zero"].mean()
    assert velocity.by_time["other"].mean() > velocity.own.value
    assert 0 < velocity.reliance.value < 1 and not velocity.reliance.spans_zero
    assert velocity.times == pytest.approx(np.arange(0.05, 1, 0.1))
    latent = quality.bodies[0].latent
    assert 1 < latent.effective_rank < latent.dims == 8
    assert latent.determined > untrained.bodies[0].latent.determined + 0.05


def test_an_untrained_prior_makes_nothing_of_its_latent(untrained):
    assert abs(untrained.bodies[0].velocity.reliance.value) < 0.1


def test_real_motion_in_the_samples_place_is_what_the_training_chunks_score(quality):
    alike = quality.bodies[0].resemblance
    assert alike.training_energy.value < alike.energy.value
    assert alike.training_energy.value < alike.floor + 0.02
    assert alike.training_coverage.value > 0.9 and 0 <= alike.copies <= 1


def test_as_many_training_chunks_as_samples_are_the_yardstick(waves):
    _, training, held_out = waves
    held, known = draw_windows(held_out, 0, 40, seed=0).complete(), draw_windows(training, 0, 400, seed=0).complete()
    assert len(known) > 3 * len(held)
    samples = np.random.default_rng(0).normal(size=held.chunks().shape)
    plenty = measure_resemblance(samples, held, known, seed=0)
    as_many = measure_resemblance(samples, held, known.select(np.arange(len(held))), seed=0)
    assert plenty.training_coverage.value == as_many.training_coverage.value
    assert plenty.training_energy.value == as_many.training_energy.value


@pytest.mark.parametrize(
    ("representation", "near", "beyond"),
    [
        ("axis_angle", [0.0, 0.0, 3.13], [0.0, 0.0, -3.13]),
        ("euler_xyz", [3.13, 0.1, 0.0], [-3.13, 0.1, 0.0]),
        ("quaternion_xyzw", [1.0, 0.0, 0.0, 0.005], [-1.0, 0.0, 0.0, 0.005]),
    ],
)
def test_nothing_is_missed_beyond_a_rotations_seam(representation, near, beyond):
    names = [f"r{index}" for index in range(len(near))]
    turn = RotationGroup(list(range(len(near))), [], representation)
    hand = Embodiment("hand", names, [], 10.0, rotations=[turn], action_normalization=NormalizationMode.IDENTITY)
    one, other = (np.tile(np.array(angles), (3, 4, 1)) for angles in (near, beyond))
    chunks = torch.from_numpy(hand.normalize_actions(one))
    mask, states = torch.ones_like(chunks, dtype=torch.bool), torch.zeros(3, 4, 0)
    windows = BodyWindows(hand, 0, chunks, mask, states, np.zeros((3, 0), np.float32), np.arange(3), episodes=3)
    raw = windows.raw(hand.normalize_actions(other))
    assert windows.missed(windows.chunks(), raw).max() < 0.03
    assert windows.missed(hand.normalize_actions(np.roll(one, 1, axis=-1)), raw).max() > 0.5


def test_errors_are_in_the_robots_units_and_rivals_get_as_many_numbers(tiny_priors):
    robot = tiny_priors.body("far", 2, minimum_range=1.0)
    source, held = tiny_priors.motion(robot, "waves", 8, seed=0), tiny_priors.motion(robot, "waves", 4, seed=1)
    for trajectory in (*source.trajectories, *held.trajectories):
        trajectory.actions *= 100
    model, bodies = tiny_priors.make_prior([source])
    training, held_out = (TrajectoryDataset([part], bodies, tiny_priors.CHUNK) for part in (source, held))
    recon = measure_prior(model, held_out, training).bodies[0].reconstruction
    assert recon.errors["mean_chunk"].value == pytest.approx(100 * 2 / np.pi, rel=0.1)  # mean of |sine|
    assert recon.normalised["mean_chunk"] < 1
    assert recon.latent_dim == 8 and recon.knots == 4 and not recon.exact_pca
    errors = {name: error.value for name, error in recon.errors.items()}
    assert errors["pca"] < errors["mean_chunk"] and errors["interpolation"] < errors["mean_chunk"]
    assert recon.gains["pca"].value == pytest.approx(errors["pca"] - errors["reconstruction"])
    assert recon.components == 0  # untrained, it errs more than the mean
    assert [len(values) for values in recon.by_dim.values()] == [2] * 4


def test_relative_actions_are_measured_as_the_robot_takes_them(tiny_priors):
    robot = tiny_priors.body("arm", 2)
    absolute, relative = (
        tiny_priors.motion(robot, "waves", 6, seed=0),
        tiny_priors.motion(robot.learning("relative"), "waves", 6, seed=0),
    )
    raw = []
    for source in (absolute, relative):
        windows = draw_windows(
            TrajectoryDataset([source], fit_embodiments([source], tiny_priors.CHUNK), tiny_priors.CHUNK), 0, 50, seed=0
        )
        raw.append(windows.raw(windows.chunks()))
    assert raw[0] == pytest.approx(raw[1], abs=1e-4)
    assert np.abs(raw[0]).max() > 0.9


def test_every_body_is_measured_on_its_own_windows_and_one_without_is_left_out(tiny_priors):
    arm, hand, other = tiny_priors.body("arm", 2), tiny_priors.body("hand", 5, rate=20.0), tiny_priors.body("other", 3)
    sources = [tiny_priors.motion(robot, "waves", 5, seed) for seed, robot in enumerate((arm, other, hand))]
    model, bodies = tiny_priors.make_prior(sources)
    training = TrajectoryDataset(sources, bodies, tiny_priors.CHUNK)
    held_out = TrajectoryDataset(
        [tiny_priors.motion(hand, "waves", 3, 7), tiny_priors.motion(arm, "waves", 9, 8)], bodies, tiny_priors.CHUNK
    )
    quality = measure_prior(model, held_out, training)
    assert [entry.name for entry in quality.bodies] == ["arm", "hand"]
    assert [entry.episodes for entry in quality.bodies] == [9, 3]
    assert [entry.few_episodes for entry in quality.bodies] == [False, True]
    assert len(quality.bodies[1].reconstruction.by_dim["pca"]) == 5
    assert quality.bodies[1].smoothness.frequencies[-1] == pytest.approx(10.0)
    alone = TrajectoryDataset([tiny_priors.motion(hand, "waves", 3, 7)], bodies, tiny_priors.CHUNK)
    assert measure_prior(model, alone, training).metrics() == pytest.approx(
        {name: value for name, value in quality.metrics().items() if name.endswith("/hand")}
    )


def test_the_same_seed_gives_the_same_numbers_and_the_mode_stays(waves, quality):
    model, training, held_out = waves
    model.train()
    again = measure_prior(model, held_out, training)
    assert model.training
    model.eval()
    assert again.metrics() == quality.metrics()
    assert measure_prior(model, held_out, training, seed=1).metrics() != quality.metrics()


def test_episodes_shorter_than_a_chunk_have_a_velocity_loss_alone(waves, tiny_priors):
    model, training, _ = waves
    source = tiny_priors.motion(tiny_priors.body("arm", 2), "waves", 3, seed=5, steps=tiny_priors.CHUNK - 2)
    short = TrajectoryDataset([source], training.embodiments, tiny_priors.CHUNK)
    quality = measure_prior(model, short, training)
    assert quality.bodies[0].velocity.own.value > 0 and quality.bodies[0].reconstruction is None
    assert set(quality.metrics()) == {"velocity_loss/arm"}


def test_what_the_latent_decides_is_what_two_of_its_samples_share():
    random = np.random.default_rng(0)
    shared, first, second = random.normal(size=(3, 4000, 6, 2))
    latents = random.normal(size=(4000, 8))
    for share in (0.0, 0.25, 1.0):
        chunks = [share**0.5 * shared + (1 - share) ** 0.5 * own for own in (first, second)]
        assert measure_latent(latents, *chunks).determined == pytest.approx(share, abs=0.02)


def test_smoothness_is_one_for_the_data_and_more_for_trembling_samples(tiny_priors):
    seconds = np.arange(16)[None, :, None] / tiny_priors.RATE
    data = np.sin(2 * np.pi * seconds + np.random.default_rng(0).uniform(0, 6, (40, 1, 2)))
    same = measure_smoothness(data, data, tiny_priors.RATE)
    assert same.jerk_ratio == pytest.approx(1.0) and same.fast_ratio == pytest.approx(1.0)
    shaken = measure_smoothness(data + 0.2 * np.random.default_rng(1).normal(size=data.shape), data, tiny_priors.RATE)
    assert shaken.jerk_ratio > 2 and shaken.fast_ratio > 5
    assert measure_smoothness(data[:, :3], data[:, :3], tiny_priors.RATE) is None
