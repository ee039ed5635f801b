"""What a prior knows, body by body, on windows that it was not trained on and without any VLM."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch

from ..modeling_priorvla.modeling_action_prior import ActionPriorModel
from .body_windows import BodyWindows, draw_windows
from .chunk_distances import Bootstrapped, Floats, bootstrap_mean, covered, distances, energy_distance, energy_floor
from .data.trajectory_dataset import TrajectoryDataset
from .motion_metrics import JERK_STEPS, effective_rank, power_spectrum, rms_jerk, variance_shares
from .prior_measures import (
    Reconstruction,
    VelocityLoss,
    encode,
    measure_reconstruction,
    measure_velocity,
    sample_chunks,
)

WINDOWS = 384  # a body, of held-out motion: seconds on one core
TRAINING_WINDOWS = 2048  # a body, of what it was trained on: fewer would fit principal components badly
SAMPLED_TWICE = 128  # of them, to see what the latent decides
EXAMPLES = 16  # chunks kept for a plot
COPY_QUANTILE = 0.05


@dataclass(frozen=True)
class Smoothness:
    """Samples against held-out motion, in normalised units.

    Args:
        jerk_ratio: RMS jerk of samples over that of the data: medians over windows, then over dims; `jerk_by_dim` (D,).
        frequencies (F,) in Hz; data_power, sample_power (F,): see `power_spectrum`.
        fast_ratio: power above half the highest frequency, samples over data.
    """

    jerk_ratio: float
    jerk_by_dim: Floats
    frequencies: Floats
    data_power: Floats
    sample_power: Floats
    fast_ratio: float


@dataclass(frozen=True)
class Resemblance:
    """How the samples lie to held-out motion, beside as many training chunks: what replaying them would reach.

    Args:
        energy, training_energy, floor: energy distances of samples and of training chunks to held-out chunks, and of
            two halves of the held-out chunks. See `energy_distance`, `energy_floor`.
        coverage, training_coverage, density: see `covered`.
        copies: share of samples that lie nearer to a training chunk than 95 % of held-out chunks do. Near 0.05 when
            the prior invents as much as real motion varies; near 1 when it replays.
    """

    energy: Bootstrapped
    training_energy: Bootstrapped
    floor: float
    coverage: Bootstrapped
    training_coverage: Bootstrapped
    density: float
    copies: float


@dataclass(frozen=True)
class LatentUsage:
    """What the latent holds.

    Args:
        effective_rank: how many of its `dims` the latents of held-out chunks spread over. See `effective_rank`.
        variance_shares: share of their variance in each principal direction; `variance_by_dim`: of each dim (z,).
        determined: share of the variance of sampled chunks that their latent decides, the rest is noise: 1 - (variance
            between chunks of one latent) / (variance between all); our choice, from two chunks a latent.
    """

    dims: int
    effective_rank: float
    variance_shares: Floats
    variance_by_dim: Floats
    determined: float


@dataclass(frozen=True)
class BodyQuality:
    """The measures of one body; those that need whole chunks are None where held-out or training motion has not two.

    `held_out_examples`, `sample_examples` (16, H, D), normalised, are for a plot and not in `to_dict`.
    """

    name: str
    action_names: list[str]
    model_action_names: list[str]
    control_rate: float
    windows: int
    episodes: int
    few_episodes: bool
    velocity: VelocityLoss
    reconstruction: Reconstruction | None = None
    smoothness: Smoothness | None = None
    resemblance: Resemblance | None = None
    latent: LatentUsage | None = None
    held_out_examples: Floats = field(default_factory=lambda: np.zeros((0, 0, 0)))
    sample_examples: Floats = field(default_factory=lambda: np.zeros((0, 0, 0)))

    def metrics(self) -> dict[str, float]:
        """The headline numbers, by short name; what has no value (the jerk of a body at rest) is left out."""
        values = {"velocity_loss": self.velocity.own.value}
        if self.reconstruction is not None:
            values |= {
                f"{name}_error": self.reconstruction.errors[name].value
                for name in ("reconstruction", "pca", "mean_chunk")
            }
        if self.smoothness is not None:
            values["jerk_ratio"] = self.smoothness.jerk_ratio
        if self.resemblance is not None:
            values |= {"energy_distance": self.resemblance.energy.value, "energy_floor": self.resemblance.floor}
            values["coverage"] = self.resemblance.coverage.value
        if self.latent is not None:
            values["latent_rank"] = self.latent.effective_rank
        return {name: value for name, value in values.items() if np.isfinite(value)}


@dataclass(frozen=True)
class PriorQuality:
    """Every body's quality, in the order of the checkpoint's ids; bodies without held-out motion are left out."""

    bodies: list[BodyQuality]
    seed: int

    def metrics(self) -> dict[str, float]:
        """`{measure/body: value}`, for metrics.json and the card."""
        return {f"{name}/{body.name}": value for body in self.bodies for name, value in body.metrics().items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything, for report.json."""
        return {"seed": self.seed, "embodiments": {body.name: _plain(body) for body in self.bodies}}


@torch.no_grad()
def measure_prior(
    model: ActionPriorModel, held_out: TrajectoryDataset, training: TrajectoryDataset, seed: int = 0
) -> PriorQuality:
    """Measures `model` on windows of `held_out`; `training` is what its simple rivals are fitted on.

    Both datasets have the checkpoint's embodiments and its chunk size. At most 384 held-out windows a body and 2,048 to
    fit rivals are drawn, by `seed`: the same seed gives the same numbers. The model's mode is left as it was.
    """
    was_training = model.training
    model.eval()
    bodies = []
    for index in range(len(held_out.embodiments)):
        windows = draw_windows(held_out, index, WINDOWS, seed)
        if len(windows):
            bodies.append(measure_body(model, windows, draw_windows(training, index, TRAINING_WINDOWS, seed), seed))
    model.train(was_training)
    return PriorQuality(bodies, seed)


def measure_body(model: ActionPriorModel, held_out: BodyWindows, training: BodyWindows, seed: int) -> BodyQuality:
    """The measures of one body on `held_out` windows."""
    body = held_out.embodiment
    facts: dict[str, Any] = {
        "name": body.name,
        "action_names": body.action_names,
        "model_action_names": body.model_action_names,
        "control_rate": body.control_rate,
        "windows": len(held_out),
        "episodes": held_out.episodes,
        "few_episodes": len(np.unique(held_out.groups)) > held_out.episodes,
    }
    whole, training = held_out.complete(), training.complete()
    if len(whole) < 2 or len(training) < 2:
        return BodyQuality(**facts, velocity=measure_velocity(model, held_out, training, seed))
    latents = encode(model, whole)
    samples = sample_chunks(model, whole, None, seed)
    reconstructed = sample_chunks(model, whole, latents, seed + 1)
    again = sample_chunks(model, whole.select(np.arange(len(whole))[:SAMPLED_TWICE]), latents[:SAMPLED_TWICE], seed + 2)
    return BodyQuality(
        **facts,
        velocity=measure_velocity(model, held_out, training, seed),
        reconstruction=measure_reconstruction(reconstructed, whole, training, model.config.expert.latent_dim, seed),
        smoothness=measure_smoothness(samples, whole.chunks(), body.control_rate),
        resemblance=measure_resemblance(samples, whole, training, seed),
        latent=measure_latent(latents.double().numpy(), reconstructed[: len(again)], again),
        held_out_examples=whole.chunks()[:EXAMPLES],
        sample_examples=samples[:EXAMPLES],
    )


def measure_smoothness(samples: Floats, data: Floats, rate: float) -> Smoothness | None:
    """Jerk and spectrum of `samples` against `data`, both (N, H, D); None for chunks under four steps."""
    if data.shape[1] < JERK_STEPS:
        return None
    ours, theirs = (np.median(rms_jerk(chunks, rate), axis=0) for chunks in (samples, data))
    by_dim = np.divide(ours, theirs, out=np.full_like(ours, np.nan), where=theirs > 1e-9)
    frequencies, data_power = power_spectrum(data, rate)
    _, sample_power = power_spectrum(samples, rate)
    fast = frequencies > frequencies[-1] / 2
    below = data_power[fast].sum()
    return Smoothness(
        jerk_ratio=float(np.nanmedian(by_dim)) if np.isfinite(by_dim).any() else float("nan"),
        jerk_by_dim=by_dim,
        frequencies=frequencies,
        data_power=data_power,
        sample_power=sample_power,
        fast_ratio=float(sample_power[fast].sum() / below) if below > 0 else float("nan"),
    )


def measure_resemblance(samples: Floats, held_out: BodyWindows, training: BodyWindows, seed: int) -> Resemblance:
    """Distances between chunks as points of H * D normalised numbers.

    Coverage grows with the number of points: of `training` chunks as many count as there are held-out ones. For copies
    all are looked through.
    """
    samples = samples.reshape(len(samples), -1)
    real, known = (windows.chunks().reshape(len(windows), -1) for windows in (held_out, training))
    groups = held_out.groups
    replay, replay_groups = known[: len(real)], training.groups[: len(real)]
    reached, density = covered(real, samples, groups)
    replayed, _ = covered(real, replay, groups)
    usual = np.quantile(distances(real, known).min(axis=1), COPY_QUANTILE)
    return Resemblance(
        energy=energy_distance(samples, real, y_groups=groups, seed=seed),
        training_energy=energy_distance(replay, real, replay_groups, groups, seed=seed),
        floor=energy_floor(real, groups, seed=seed),
        coverage=bootstrap_mean(reached, groups, seed=seed),
        training_coverage=bootstrap_mean(replayed, groups, seed=seed),
        density=density,
        copies=float((distances(samples, known).min(axis=1) < usual).mean()),
    )


def measure_latent(latents: Floats, first: Floats, second: Floats) -> LatentUsage:
    """Usage of `latents` (N, z); `first` and `second` (M, H, D) are two samples each from M of them."""
    within = np.square(first - second).mean() / 2
    total = np.concatenate([first, second]).var(axis=0, ddof=1).mean()
    return LatentUsage(
        dims=latents.shape[1],
        effective_rank=effective_rank(latents),
        variance_shares=variance_shares(latents),
        variance_by_dim=latents.var(axis=0),
        determined=float(np.clip(1 - within / total, 0, 1)) if total > 0 else 0.0,
    )


def _plain(value: Any) -> Any:
    """A measure as JSON holds it: not-a-number becomes null."""
    if isinstance(value, Bootstrapped):
        return value.to_dict()
    if is_dataclass(value):
        return {
            entry.name: _plain(getattr(value, entry.name))
            for entry in fields(value)
            if not entry.name.endswith("_examples")
        }
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.6g}") if np.isfinite(value) else None
    return value


__all__ = [
    "BodyQuality",
    "LatentUsage",
    "PriorQuality",
    "Resemblance",
    "Smoothness",
    "measure_body",
    "measure_latent",
    "measure_prior",
    "measure_resemblance",
    "measure_smoothness",
]
