"""Flow matching: times, interpolation, the masked loss, and the integration by diffusers' schedulers."""

import pytest
import torch

from priorvla.modeling_priorvla.flow_matching import integrate, interpolate, make_scheduler, sample_times, velocity_loss

EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}
HEUN = {"_class_name": "FlowMatchHeunDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0}


def test_interpolation_is_the_action_at_time_zero_and_the_noise_at_time_one():
    actions, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(interpolate(actions, noise, torch.zeros(2)), actions)
    torch.testing.assert_close(interpolate(actions, noise, torch.ones(2)), noise)


def test_interpolation_takes_a_time_for_every_step():
    actions, noise = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    x = interpolate(actions, noise, torch.tensor([[0.0, 0.25]]))
    torch.testing.assert_close(x[0, 0], actions[0, 0])
    torch.testing.assert_close(x[0, 1], 0.75 * actions[0, 1] + 0.25 * noise[0, 1])


@pytest.mark.parametrize(
    ("distribution", "mean", "std"), [("uniform", 0.5, 12**-0.5), ("beta", 0.6, 0.2619), ("logit_normal", 0.5, 0.2083)]
)
def test_training_times_have_the_moments_of_their_distribution(distribution, mean, std):
    times = sample_times(distribution, 200_000, generator=torch.Generator().manual_seed(0))
    assert times.min() >= 0 and times.max() <= 1
    assert times.mean().item() == pytest.approx(mean, abs=3e-3)
    assert times.std().item() == pytest.approx(std, abs=3e-3)


def test_whole_numbers_are_parameters_of_a_beta_distribution_too():
    times = sample_times("beta", 100_000, alpha=4, beta=1, generator=torch.Generator().manual_seed(0))
    assert times.mean().item() == pytest.approx(0.8, abs=3e-3)


def test_the_same_generator_seed_draws_the_same_times():
    first, second = (sample_times("beta", 5, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)


def test_an_unknown_time_distribution_is_refused():
    with pytest.raises(ValueError, match="'cosine' is unknown"):
        sample_times("cosine", 3)


def test_the_loss_equals_a_hand_computation_window_by_window():
    velocity = torch.zeros(2, 2, 2)
    target = torch.tensor([[[1.0, 2.0], [3.0, 9.0]], [[2.0, 9.0], [9.0, 9.0]]])
    mask = torch.tensor([[[True, True], [True, False]], [[True, False], [False, False]]])
    expected = ((1 + 4 + 9) / 3 + 4 / 1) / 2  # a window's mean first, then the mean over windows
    assert velocity_loss(velocity, target, mask).item() == pytest.approx(expected)


def test_a_window_without_real_entries_does_not_count():
    velocity, target = torch.zeros(2, 1, 1), torch.tensor([[[2.0]], [[7.0]]])
    mask = torch.tensor([[[True]], [[False]]])
    assert velocity_loss(velocity, target, mask).item() == pytest.approx(4.0)


def test_masked_entries_do_not_reach_the_loss_even_when_they_are_not_numbers():
    velocity, target = torch.zeros(1, 1, 2, requires_grad=True), torch.tensor([[[1.0, float("nan")]]])
    loss = velocity_loss(velocity, target, torch.tensor([[[True, False]]]))
    loss.backward()
    assert loss.item() == 1.0
    assert torch.isfinite(velocity.grad).all()


@pytest.mark.parametrize("scheduler", [EULER, HEUN])
def test_a_constant_velocity_field_recovers_its_target(scheduler):
    noise, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    actions = integrate(lambda x, tau, clean: noise - target, noise, scheduler=scheduler, num_inference_steps=7)
    torch.testing.assert_close(actions, target, atol=2e-6, rtol=0)


@pytest.mark.parametrize(("scheduler", "std", "tolerance"), [(EULER, 0.424, 0.01), (HEUN, 0.5, 0.01)])
def test_a_gaussian_is_sampled_with_the_moments_that_the_solver_allows(scheduler, std, tolerance):
    # The exact velocity of the flow to N(2, 0.5^2); ten Euler steps shrink its width to 0.424, Heun's do not.
    def velocity(x, tau, clean):
        tau = tau[:, None, None]
        variance = (1 - tau) ** 2 * 0.25 + tau**2
        mean_action = 2 + (1 - tau) * 0.25 / variance * (x - (1 - tau) * 2)
        mean_noise = tau / variance * (x - (1 - tau) * 2)
        return mean_noise - mean_action

    noise = torch.randn(40_000, 1, 1, generator=torch.Generator().manual_seed(0))
    actions = integrate(velocity, noise, scheduler=scheduler, num_inference_steps=10)
    assert actions.mean().item() == pytest.approx(2.0, abs=0.02)
    assert actions.std().item() == pytest.approx(std, abs=tolerance)


@pytest.mark.parametrize(("scheduler", "evaluations"), [(EULER, 5), (HEUN, 9)])
def test_no_evaluation_is_wasted_and_times_run_from_one_down_in_equal_steps(scheduler, evaluations):
    times = []
    integrate(
        lambda x, tau, clean: times.append(tau[0].item()) or torch.zeros_like(x),
        torch.randn(1, 2, 1),
        scheduler=scheduler,
        num_inference_steps=5,
    )
    assert len(times) == evaluations
    assert sorted(set(times), reverse=True) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert make_scheduler(scheduler, 5).sigmas[-1] == 0


def test_a_prefix_stays_as_given_and_is_shown_clean():
    prefix = torch.full((2, 3, 1), 5.0)
    seen = []

    def velocity(x, tau, clean):
        seen.append((x.clone(), clean))
        return torch.ones_like(x)

    actions = integrate(
        velocity,
        torch.randn(2, 4, 1),
        scheduler=EULER,
        num_inference_steps=3,
        prefix_actions=prefix,
        prefix_length=torch.tensor([1, 3]),
    )
    assert (actions[0, :1] == 5).all() and (actions[1, :3] == 5).all()
    assert (actions[0, 1:] != 5).all() and (actions[1, 3:] != 5).all()
    for x, clean in seen:
        assert (x[0, :1] == 5).all() and (x[1, :3] == 5).all()
        assert clean.tolist() == [[True, False, False, False], [True, True, True, False]]


@pytest.mark.parametrize(
    ("steps", "length", "message"), [(5, None, "prefix_actions has 5 steps"), (2, [3], "prefix_length")]
)
def test_an_impossible_prefix_is_refused(steps, length, message):
    with pytest.raises(ValueError, match=message):
        integrate(
            lambda x, tau, clean: x,
            torch.randn(1, 4, 1),
            scheduler=EULER,
            num_inference_steps=2,
            prefix_actions=torch.zeros(1, steps, 1),
            prefix_length=None if length is None else torch.tensor(length),
        )
