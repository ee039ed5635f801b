"""Flow matching between noise and action, and its integration by diffusers' schedulers.

One convention everywhere: flow time tau is 1 at noise and 0 at the action; x = (1 - tau) a + tau e; the network
predicts the velocity v = e - a (as pi0 and diffusers).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import diffusers
import torch
from torch import Tensor


def sample_times(
    distribution: str,
    batch_size: int,
    *,
    alpha: float = 1.5,
    beta: float = 1.0,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Training times tau (B,), float32 in [0, 1].

    `beta` is pi0's Beta(alpha, beta) (with 1.5 and 1 it dwells near the noise), `uniform` and `logit_normal` (the
    logistic of a standard normal) are the usual alternatives; paper A does not say which it used.
    """
    shape = (batch_size,)
    if distribution == "uniform":
        return torch.rand(shape, device=device, generator=generator)
    if distribution == "logit_normal":
        return torch.randn(shape, device=device, generator=generator).sigmoid()
    if distribution == "beta":
        # torch.distributions.Beta takes no generator; a ratio of two gamma variables is the same distribution.
        x = torch._standard_gamma(torch.full(shape, float(alpha), device=device), generator=generator)
        y = torch._standard_gamma(torch.full(shape, float(beta), device=device), generator=generator)
        return x / (x + y)
    raise ValueError(f"time distribution {distribution!r} is unknown, use beta, uniform or logit_normal")


def interpolate(actions: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """x at flow time `timestep` (B,) or (B, H) between `actions` and `noise`, both (B, H, D)."""
    tau = timestep.reshape(len(timestep), -1, 1).to(actions.dtype)
    return (1 - tau) * actions + tau * noise


def velocity_loss(
    velocity: Tensor, target: Tensor, mask: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """Squared error of (B, H, D) velocities, float32 scalar.

    The mean over a window's entries where `mask` (B, H, D) is true, then the mean over windows, so that a 26-dim robot
    weighs no more than a 4-dim one and padding weighs nothing (our choice). Windows without a valid entry do not count.
    `weights` (B, D), not negative: the mean over a window is weighted by them (paper B: 30 / 10 / 10).
    """
    error = velocity.float() - target.float()
    mask = torch.ones_like(error, dtype=torch.bool) if mask is None else mask
    # masked before it is squared: what is not a number there would come back in the gradient
    squared = torch.where(mask, error, 0.0).square()
    valid = mask.float()
    if weights is not None:
        squared, valid = squared * weights[:, None], valid * weights[:, None]
    # dims one after the other: zeros added last change no bit, whatever a wider robot pads
    total, count = (reduce(torch.add, values.unbind(dim=-1)).sum(dim=1) for values in (squared, valid))
    per_window = total / torch.where(count > 0, count, 1.0)
    return per_window.sum() / (count > 0).sum().clamp(min=1)


def integrate(
    velocity: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    noise: Tensor,
    *,
    scheduler: dict[str, Any],
    num_inference_steps: int,
    prefix_actions: Tensor | None = None,
    prefix_length: Tensor | None = None,
) -> Tensor:
    """Integrates from `noise` (B, H, D) at tau = 1 to actions (B, H, D) at tau = 0, in float32.

    Args:
        velocity: (x (B, H, D), timestep (B,), clean (B, H) bool or None) -> v (B, H, D); `clean` marks the prefix.
        scheduler: `{"_class_name": ..., **arguments}` of a diffusers flow-matching scheduler. Euler evaluates the
            velocity `num_inference_steps` times, Heun 2 N - 1 times.
        prefix_actions (B, P, D), prefix_length (B,): the first `prefix_length` steps are known and stay as given; they
            are shown to the network clean, at tau = 0. `prefix_length` defaults to P for every row.

    Raises:
        ValueError: on a prefix longer than the chunk, a prefix_length outside [0, P], or less than one step.
    """
    if num_inference_steps < 1:
        raise ValueError(f"num_inference_steps={num_inference_steps} must be at least 1")
    x = noise.float()
    clean, known = _prefix(x, prefix_actions, prefix_length)
    stepper = make_scheduler(scheduler, num_inference_steps)
    for index, scheduler_time in enumerate(stepper.timesteps):
        x = _with_prefix(x, clean, known)
        tau = stepper.sigmas[index].to(x).expand(len(x))
        x = stepper.step(velocity(x, tau, clean).float(), scheduler_time, x, return_dict=False)[0]
    return _with_prefix(x, clean, known)


def make_scheduler(config: dict[str, Any], num_inference_steps: int) -> Any:
    """A fresh diffusers scheduler (they carry state) with `sigmas` 1, (N-1)/N, ..., 1/N, 0, without a wasted step."""
    arguments = {key: value for key, value in config.items() if key != "_class_name"}
    scheduler_class = getattr(diffusers, config["_class_name"])
    if config["_class_name"] == "FlowMatchHeunDiscreteScheduler":
        # Heun takes no sigmas; with N training times its own grid is the one wanted.
        scheduler = scheduler_class(**{**arguments, "num_train_timesteps": num_inference_steps})
        scheduler.set_timesteps(num_inference_steps)
    else:
        scheduler = scheduler_class(**arguments)
        scheduler.set_timesteps(sigmas=[1 - i / num_inference_steps for i in range(num_inference_steps)])
    return scheduler


def _with_prefix(x: Tensor, clean: Tensor | None, known: Tensor) -> Tensor:
    return x if clean is None else torch.where(clean[..., None], known, x)


def _prefix(x: Tensor, actions: Tensor | None, length: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """`clean` (B, H) bool, true where the prefix stands, or None without one, and `known` (B, H, D) that holds it."""
    batch_size, horizon, _ = x.shape
    if actions is None:
        return None, x
    steps = actions.shape[1]
    if steps > horizon:
        raise ValueError(f"prefix_actions has {steps} steps, the chunk has {horizon}")
    if length is None:
        length = torch.full((batch_size,), steps, device=x.device)
    if bool(((length < 0) | (length > steps)).any()):
        raise ValueError(f"prefix_length {length.tolist()} must lie between 0 and the prefix's {steps} steps")
    known = torch.zeros_like(x)
    known[:, :steps] = actions.to(x)
    return torch.arange(horizon, device=x.device) < length.to(x.device)[:, None], known


__all__ = ["integrate", "interpolate", "make_scheduler", "sample_times", "velocity_loss"]
