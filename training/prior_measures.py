"""Velocity loss and reconstruction of an action prior on a body's windows, beside rivals that are not networks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..modeling_priorvla.modeling_action_prior import ActionPriorModel
from .body_windows import BodyWindows
from .chunk_distances import Bootstrapped, Floats, bootstrap_mean, bootstrap_ratio
from .motion_metrics import PrincipalComponents, gaussian_velocity, piecewise_linear

TIME_BINS = 10
VELOCITY_WINDOWS = 96  # each of them at ten times, with three latents
ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class VelocityLoss:
    """Squared error of the predicted velocity in normalised units, at flow times in ten equal bins (1 = noise).

    Args:
        times: (10,) the bins' centres.
        by_time: (10,) each, by who predicts: `own` is told the window's own latent (as L_recon), `null` none, `other`
            that of another window; `gaussian` knows each entry's mean and spread (see `gaussian_velocity`); `zero`
            always says no velocity.
        own, null: means over times, uniformly (training may weigh times otherwise).
        reliance: share of the loss without latent that the own latent takes away; 0 when the latent is not used.
    """

    times: Floats
    by_time: dict[str, Floats]
    own: Bootstrapped
    null: Bootstrapped
    reliance: Bootstrapped


@dataclass(frozen=True)
class Reconstruction:
    """Mean absolute errors of held-out chunks sampled from their own latents, and of rivals of equal size.

    Args:
        errors: in raw action units, over all dims: `reconstruction` (the prior), `pca` (as many principal components
            as the latent has dims, of training chunks), `interpolation` (lines between evenly spaced points that
            together have no more numbers than the latent; absent when that is not one point), `mean_chunk` (the mean
            training chunk, always).
        by_dim: (D_raw,) each. `normalised`: in the model's units, over all dims.
        gains: rival's error minus the prior's; positive where the prior errs less.
        knots: the interpolation's points. `exact_pca`: whether the latent has as many numbers as the chunk, so that
            principal components lose nothing.
        components: the fewest principal components that err no more than the prior; None when even all err more.
    """

    errors: dict[str, Bootstrapped]
    by_dim: dict[str, Floats]
    normalised: dict[str, float]
    gains: dict[str, Bootstrapped]
    latent_dim: int
    knots: int
    exact_pca: bool
    components: int | None


def measure_velocity(model: ActionPriorModel, windows: BodyWindows, training: BodyWindows, seed: int) -> VelocityLoss:
    """The velocity loss of at most 96 `windows`; padded entries do not count. `training` may have no window.

    Every window is seen at a random time within each of the ten bins, with one noise for all predictors.
    """
    windows = windows.select(np.arange(min(len(windows), VELOCITY_WINDOWS)))
    generator = torch.Generator().manual_seed(seed)
    latents = encode(model, windows)
    told = {"own": latents, "null": None, "other": latents.roll(1, dims=0)}
    entries = windows.mask.double()
    mean, spread = _entry_statistics(training if len(training) else windows)
    losses: dict[str, list[Floats]] = {name: [] for name in (*told, "gaussian", "zero")}
    for bin_number in range(TIME_BINS):
        times = (bin_number + torch.rand(len(windows), generator=generator)) / TIME_BINS
        times = times.clamp(min=1e-3)
        noise = torch.randn(windows.actions.shape, generator=generator)
        target = noise - windows.actions
        noisy = ((1 - times[:, None, None]) * windows.actions + times[:, None, None] * noise).double().numpy()
        guesses = {name: _velocity(model, windows, latent, noise, times) for name, latent in told.items()}
        guesses["gaussian"] = torch.from_numpy(gaussian_velocity(noisy, mean, spread, times))
        guesses["zero"] = torch.zeros_like(target)
        for name, guess in guesses.items():
            error = ((guess - target).double() ** 2 * entries).sum(dim=(1, 2)) / entries.sum(dim=(1, 2))
            losses[name].append(error.numpy())
    by_window = {name: np.stack(values, axis=1) for name, values in losses.items()}  # (N, 10)
    own, null = by_window["own"].mean(axis=1), by_window["null"].mean(axis=1)
    return VelocityLoss(
        times=(np.arange(TIME_BINS) + 0.5) / TIME_BINS,
        by_time={name: values.mean(axis=0) for name, values in by_window.items()},
        own=bootstrap_mean(own, windows.groups, seed=seed),
        null=bootstrap_mean(null, windows.groups, seed=seed),
        reliance=bootstrap_ratio(null - own, null, windows.groups, seed=seed),
    )


def measure_reconstruction(
    reconstructed: Floats, windows: BodyWindows, training: BodyWindows, latent_dim: int, seed: int
) -> Reconstruction:
    """Errors of `reconstructed` chunks (N, H, D) of `windows`, and of its rivals, fitted on `training` windows."""
    chunks = windows.chunks()
    _, steps, dims = chunks.shape
    components = PrincipalComponents.fit(training.chunks())
    answers = {"reconstruction": reconstructed, "pca": components.reconstruct(chunks, latent_dim)}
    knots = min(latent_dim // dims, steps)
    if knots:
        answers["interpolation"] = piecewise_linear(chunks, knots)
    answers["mean_chunk"] = np.broadcast_to(components.mean, chunks.shape)
    raw = windows.raw(chunks)
    missed = {name: windows.missed(answer, raw) for name, answer in answers.items()}
    by_window = {name: error.mean(axis=(1, 2)) for name, error in missed.items()}
    return Reconstruction(
        errors={name: bootstrap_mean(error, windows.groups, seed=seed) for name, error in by_window.items()},
        by_dim={name: error.mean(axis=(0, 1)) for name, error in missed.items()},
        normalised={name: float(np.abs(answer - chunks).mean()) for name, answer in answers.items()},
        gains={
            name: bootstrap_mean(error - by_window["reconstruction"], windows.groups, seed=seed)
            for name, error in by_window.items()
            if name != "reconstruction"
        },
        latent_dim=latent_dim,
        knots=knots,
        exact_pca=latent_dim >= steps * dims,
        components=_equal_components(components, windows, raw, float(by_window["reconstruction"].mean())),
    )


def encode(model: ActionPriorModel, windows: BodyWindows) -> Tensor:
    """Latents (N, z) of the windows, on the CPU."""
    latents = []
    for rows in _slices(len(windows)):
        actions, mask, states, ids = _wide(model, windows, rows)
        latents.append(model.encode(states, actions, ids, mask).float().cpu())
    return torch.cat(latents)


def sample_chunks(model: ActionPriorModel, windows: BodyWindows, latents: Tensor | None, seed: int) -> Floats:
    """A chunk (N, H, D) for each window, normalised: from `latents` (N, z), or of motion in general.

    The windows give the number, the body and, to an expert that asks for it, the state at the first step.
    """
    generator = torch.Generator().manual_seed(seed)
    chunks = []
    for rows in _slices(len(windows)):
        _, _, states, ids = _wide(model, windows, rows)
        latent = None if latents is None else latents[rows].to(model.device)
        sampled = model.sample_actions(latent, embodiment_ids=ids, state=states[:, 0], generator=generator)
        chunks.append(sampled[..., : windows.actions.shape[2]].double().cpu().numpy())
    return np.concatenate(chunks)


def _velocity(
    model: ActionPriorModel, windows: BodyWindows, latents: Tensor | None, noise: Tensor, times: Tensor
) -> Tensor:
    """Predicted velocities (N, H, D), on the CPU."""
    velocities = []
    for rows in _slices(len(windows)):
        actions, mask, states, ids = _wide(model, windows, rows)
        latent = None if latents is None else latents[rows].to(model.device)
        context = model.expert.encode_context(ids, latent, state=states[:, 0])
        wide_noise = torch.zeros_like(actions)
        wide_noise[..., : noise.shape[2]] = noise[rows]
        flow = model.predict_velocity(actions, ids, context, mask, wide_noise, times[rows].to(model.device))
        velocities.append(flow.velocity[..., : noise.shape[2]].float().cpu())
    return torch.cat(velocities)


def _wide(model: ActionPriorModel, windows: BodyWindows, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Actions, mask and states padded to the checkpoint's widest body, and the ids, on the model's device."""
    expert = model.config.expert
    tensors = []
    for values, width in (
        (windows.actions, expert.action_dim),
        (windows.mask, expert.action_dim),
        (windows.states, expert.state_dim),
    ):
        part = values[rows].to(model.device)
        tensors.append(torch.nn.functional.pad(part, (0, width - part.shape[2])))
    ids = torch.full((len(tensors[0]),), windows.index, device=model.device)
    return tensors[0], tensors[1], tensors[2], ids


def _slices(rows: int) -> list[slice]:
    return [slice(start, start + ROWS_AT_ONCE) for start in range(0, rows, ROWS_AT_ONCE)]


def _entry_statistics(windows: BodyWindows) -> tuple[Floats, Floats]:
    """Mean and standard deviation (H, D) of every entry of the chunks, over the windows that have it."""
    chunks, real = windows.chunks(), windows.mask.numpy()
    count = real.sum(axis=0).clip(min=1)
    mean = (chunks * real).sum(axis=0) / count
    return mean, np.sqrt((np.square(chunks - mean) * real).sum(axis=0) / count)


def _equal_components(components: PrincipalComponents, windows: BodyWindows, raw: Floats, error: float) -> int | None:
    """The fewest components whose error is not above `error`, found by halving: more components err less."""

    def errs_less(count: int) -> bool:
        answer = components.reconstruct(windows.chunks(), count)
        return float(windows.missed(answer, raw).mean()) <= error

    low, high = 0, len(components.directions)
    if not errs_less(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if errs_less(middle) else (middle + 1, high)
    return low


__all__ = ["Reconstruction", "VelocityLoss", "encode", "measure_reconstruction", "measure_velocity", "sample_chunks"]
