"""Measures of motion on cases whose answer is known on paper."""

from __future__ import annotations

import numpy as np
import pytest

from priorvla.training.body_windows import independent_groups
from priorvla.training.chunk_distances import (
    bootstrap_mean,
    bootstrap_ratio,
    covered,
    distances,
    energy_distance,
    energy_floor,
)
from priorvla.training.motion_metrics import (
    PrincipalComponents,
    effective_rank,
    gaussian_velocity,
    piecewise_linear,
    power_spectrum,
    rms_jerk,
    variance_shares,
)

RATE = 20.0


def normal(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def test_distances_are_euclidean():
    a, b = normal(5, 3), normal(4, 3, seed=1)
    assert distances(a, b) == pytest.approx(np.linalg.norm(a[:, None] - b[None], axis=2))


def test_equal_distributions_lie_at_the_floor_and_a_shift_moves_them_apart():
    real = normal(200, 4)
    floor = energy_floor(real)
    apart = [energy_distance(normal(200, 4, seed=1) + shift, real) for shift in (0.0, 0.5, 1.0, 4.0)]
    assert apart[0].value <= floor and apart[0].spans_zero
    values = [distance.value for distance in apart]
    assert values == sorted(values) and values[1] > floor and values[3] > 0.5
    assert not any(distance.spans_zero for distance in apart[1:])
    assert all(distance.interval[0] < distance.value < distance.interval[1] for distance in apart[1:])


def test_energy_distance_is_the_one_of_two_points_and_free_of_scale():
    x, y = np.array([[0.0], [0.0]]), np.array([[1.0], [1.0]])
    assert energy_distance(x, y).value == pytest.approx(1.0)  # 2 E|X-Y| = 2 and nothing within
    spread, other = normal(100, 3), normal(100, 3, seed=1) + 1
    assert energy_distance(7 * spread, 7 * other).value == pytest.approx(energy_distance(spread, other).value)


def test_overlapping_windows_of_few_episodes_are_no_evidence_of_a_difference():
    """20 episodes of 15 nearly equal windows: taken for 300 draws, they look unlike their own distribution."""
    centres = normal(20, 4)
    groups = np.repeat(np.arange(20), 15)
    windows = centres[groups] + 0.05 * normal(300, 4, seed=1)
    samples = normal(300, 4, seed=2)
    by_episode, by_window = energy_distance(samples, windows, y_groups=groups), energy_distance(samples, windows)
    width = [high - low for low, high in (by_episode.interval, by_window.interval)]
    assert by_episode.spans_zero and width[0] > 1.5 * width[1]
    assert energy_floor(windows, groups) > 2 * energy_floor(windows)


def test_distances_of_two_samples_to_one_dataset_are_subtracted_draw_by_draw():
    groups = np.repeat(np.arange(12), 10)
    real = normal(12, 2)[groups] + 0.3 * normal(120, 2, seed=1)
    near, far = (energy_distance(normal(100, 2, seed=2) + shift, real, y_groups=groups) for shift in (0.6, 1.2))
    difference = far - near
    assert difference.value == pytest.approx(far.value - near.value) and not difference.spans_zero
    paired, unpaired = np.std(difference.draws), np.hypot(np.std(near.draws), np.std(far.draws))
    assert paired < unpaired


def test_the_same_seed_gives_the_same_interval():
    real, samples = normal(40, 2), normal(40, 2, seed=1)
    assert energy_distance(samples, real, seed=3).interval == energy_distance(samples, real, seed=3).interval
    assert energy_distance(samples, real, seed=3).interval != energy_distance(samples, real, seed=4).interval


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((3, 2)), np.zeros((3, 4)), "x has 2 columns and y 4"),
        (np.zeros((1, 2)), np.zeros((3, 2)), r"x must be \(N, F\) with at least two rows, got shape \(1, 2\)"),
        (np.zeros((3, 2, 2)), np.zeros((3, 2)), "x must be"),
    ],
)
def test_samples_that_cannot_be_compared_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        energy_distance(x, y)


def test_groups_are_one_a_row():
    with pytest.raises(ValueError, match=r"groups have shape \(2,\) for 5 rows"):
        energy_floor(normal(5, 2), np.arange(2))


def test_data_cover_themselves_and_far_samples_cover_nothing():
    real = normal(60, 3)
    reached, density = covered(real, real)
    assert reached.all() and density > 0.9
    reached, density = covered(real, normal(60, 3, seed=1))
    assert reached.mean() > 0.8 and 0.7 < density < 1.4
    reached, density = covered(real, real + 100)
    assert not reached.any() and density == 0


def test_samples_of_one_of_two_modes_cover_half():
    real = normal(100, 2) + np.repeat([[0, 0], [50, 50]], 50, axis=0)
    reached, _ = covered(real, normal(100, 2, seed=1))
    assert reached[:50].mean() > 0.8 and not reached[50:].any()


def test_the_next_window_of_an_episode_does_not_shrink_the_neighbourhood():
    groups = np.repeat(np.arange(10), 20)
    real = normal(10, 3)[groups] + 0.001 * normal(200, 3, seed=1)
    samples = normal(200, 3, seed=2)
    assert covered(real, samples, groups)[0].mean() > 0.8 > covered(real, samples)[0].mean()


def test_one_row_has_no_interval_and_is_refused_at_once():
    with pytest.raises(ValueError, match=r"one row says nothing .* measure at least two"):
        bootstrap_mean([1.0])


def test_a_bootstrapped_mean_varies_with_its_groups_and_not_with_their_windows():
    values = np.repeat(normal(10, 1)[:, 0], 30)
    mean = bootstrap_mean(values, np.repeat(np.arange(10), 30))
    low, high = mean.interval
    assert mean.value == pytest.approx(values.mean())
    assert high - low > 3 * np.subtract(*bootstrap_mean(values).interval[::-1])
    ratio = bootstrap_ratio(values, 2 * values)
    assert ratio.value == pytest.approx(0.5) and ratio.draws == pytest.approx(0.5)


def test_the_jerk_of_a_cubic_is_its_constant_and_of_a_parabola_zero():
    seconds = np.arange(12) / RATE
    chunks = np.stack([2.0 * seconds**3, 5.0 * seconds**2], axis=1)[None]
    assert rms_jerk(chunks, RATE)[0] == pytest.approx([12.0, 0.0], abs=1e-8)
    with pytest.raises(ValueError, match="at least 4 steps, got 3"):
        rms_jerk(chunks[:, :3], RATE)


def test_a_spectrum_has_its_peak_at_the_frequency_and_ignores_a_straight_line():
    seconds = np.arange(40) / RATE
    wave = np.sin(2 * np.pi * 3.0 * seconds)[None, :, None]
    frequencies, power = power_spectrum(wave, RATE)
    assert frequencies[power.argmax()] == pytest.approx(3.0)
    assert frequencies[-1] == pytest.approx(RATE / 2) and frequencies[0] > 0
    assert power_spectrum(wave + 4 * seconds[None, :, None] + 2, RATE)[1] == pytest.approx(power, rel=0.05, abs=0.05)
    assert power_spectrum(2 * wave, RATE)[1] == pytest.approx(4 * power)


def test_lines_between_knots_are_exact_where_the_curve_has_no_more():
    steps = np.arange(9.0)
    line, corner = 3 * steps - 1, np.abs(steps - 4)
    chunks = np.stack([line, corner], axis=1)[None]
    assert piecewise_linear(chunks, 3) == pytest.approx(chunks)
    two = piecewise_linear(chunks, 2)
    assert two[..., 0] == pytest.approx(chunks[..., 0]) and np.abs(two[..., 1] - chunks[..., 1]).max() > 1
    assert piecewise_linear(chunks, 1)[0, :, 1] == pytest.approx(corner.mean())
    assert piecewise_linear(chunks, 9) == pytest.approx(chunks)
    with pytest.raises(ValueError, match="at least one knot"):
        piecewise_linear(chunks, 0)


def test_principal_components_are_exact_on_data_of_their_rank():
    low_rank = (normal(50, 3) @ normal(3, 8 * 2, seed=1)).reshape(50, 8, 2) + 5
    new = (normal(10, 3, seed=2) @ normal(3, 8 * 2, seed=1)).reshape(10, 8, 2) + 5
    components = PrincipalComponents.fit(low_rank)
    assert components.reconstruct(new, 3) == pytest.approx(new)
    errors = [np.abs(components.reconstruct(new, count) - new).mean() for count in range(4)]
    assert errors == sorted(errors, reverse=True) and errors[2] > 0.1
    assert components.reconstruct(new, 0) == pytest.approx(np.broadcast_to(components.mean, new.shape))


def test_the_effective_rank_counts_directions():
    basis = np.linalg.qr(normal(8, 8))[0]
    uniform = np.concatenate([basis[:3], -basis[:3]])  # exactly three directions, equally used
    assert effective_rank(uniform) == pytest.approx(3.0)
    assert effective_rank(normal(2000, 8)) == pytest.approx(8.0, abs=0.1)
    assert effective_rank(np.ones((5, 8))) == 0
    shares = variance_shares(uniform)
    assert shares[:3] == pytest.approx(1 / 3) and shares[3:] == pytest.approx(0, abs=1e-12) and len(shares) == 8


def test_the_gaussian_guess_is_the_best_linear_one():
    """For independent Gaussian entries its error is the closed form s^2 / (tau^2 + (1 - tau)^2 s^2)."""
    random = np.random.default_rng(0)
    mean, std = np.array([[1.0, -2.0]]), np.array([[0.5, 3.0]])
    actions, noise = mean + std * random.normal(size=(20000, 1, 2)), random.normal(size=(20000, 1, 2))
    for tau in (0.1, 0.5, 0.95):
        noisy = (1 - tau) * actions + tau * noise
        guess = gaussian_velocity(noisy, mean, std, np.full(20000, tau))
        error = np.square(guess - (noise - actions)).mean(axis=(0, 1))
        assert error == pytest.approx(std[0] ** 2 / (tau**2 + (1 - tau) ** 2 * std[0] ** 2), rel=0.04)


def test_episodes_are_the_groups_and_few_of_them_are_cut_into_stretches():
    many = np.repeat(np.arange(9), 5)
    assert (independent_groups(many, np.tile(np.arange(5), 9)) == many).all()
    step = np.random.default_rng(0).permutation(40)
    groups = independent_groups(np.repeat([4, 7], 20), step)
    assert len(np.unique(groups)) == 8 and (np.diff(np.bincount(groups)) == 0).all()
    for episode in (slice(0, 20), slice(20, 40)):
        assert (np.diff(groups[episode][np.argsort(step[episode])]) >= 0).all()
