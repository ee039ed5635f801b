"""How far somebody's motion lies from what a prior knows, and which of several priors lies nearest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ..configuration.compatibility import CompatibilityReport, compatibility_report
from ..configuration.configuration_action_prior import ActionPriorConfig
from ..configuration.embodiment import Embodiment
from ..hub_cards.info import checkpoint_folder
from ..modeling_priorvla.modeling_action_prior import ActionPriorModel
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .body_windows import BodyWindows, draw_windows
from .chunk_distances import Bootstrapped, Floats, bootstrap_mean, covered, energy_distance, energy_floor
from .data.trajectory import TrajectorySource
from .data.trajectory_dataset import TrajectoryDataset, fit_embodiments
from .motion_profiles import chunk_duration, recorded_profiles, sampled_profiles
from .prior_measures import VelocityLoss, encode, measure_velocity, sample_chunks
from .prior_report import read_report

SAMPLES = 256  # a body
WINDOWS = 512


@dataclass(frozen=True)
class KnownBody:
    """How a prior that knows the body does on the new data, and did on the episodes that it was evaluated on.

    Args:
        velocity: see `VelocityLoss`. reconstruction: mean absolute error in raw action units, or None without a whole
            chunk. The `recorded_` ones stand in the checkpoint's report.json, None when it has none.
    """

    velocity: VelocityLoss
    reconstruction: Bootstrapped | None
    recorded_velocity: float | None
    recorded_reconstruction: float | None


@dataclass(frozen=True)
class MotionDistance:
    """One prior's distance from a dataset, by profiles of single dims (see `motion_profiles`).

    Args:
        prior: its Hub id, or the last component of its folder.
        by_body: energy distance from the samples of each of its bodies to the dataset; `all_bodies`: from all.
        floor: the same of two halves of the dataset; a distance below it says nothing.
        coverage: share of the dataset's profiles that have a sample in their neighbourhood.
        duration: seconds that a profile spans; steps: the same in control steps of the dataset.
        episodes: of the dataset, that were compared.
        compatibility: of the dataset with the prior's body of its name, None without one; known: when it fits.
    """

    prior: str
    by_body: dict[str, Bootstrapped]
    all_bodies: Bootstrapped
    floor: float
    coverage: Bootstrapped
    duration: float
    steps: float
    episodes: int
    compatibility: CompatibilityReport | None = None
    known: KnownBody | None = None
    nearest: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "nearest", min(self.by_body, key=lambda name: self.by_body[name].value))

    @property
    def distance(self) -> Bootstrapped:
        """That of its nearest body: a prior of many bodies is not far because most of them are others."""
        return self.by_body[self.nearest]


@dataclass(frozen=True)
class _Prior:
    name: str
    folder: Path
    model: ActionPriorModel
    embodiments: list[Embodiment]


def motion_distance(priors: Sequence[str | Path], source: TrajectorySource, seed: int = 0) -> list[MotionDistance]:
    """The distances of `priors` (folders or Hub ids of action priors) from `source`, nearest first.

    All are compared over the shortest of their chunks' durations, and over no more than half the episodes of `source`
    last, so that distances compare. The same `seed` gives the same numbers.

    Raises:
        FileNotFoundError: a prior that is not there.
        ValueError: no prior, a checkpoint that is none, chunks or episodes of one step, a source without two windows.
    """
    if not priors:
        raise ValueError("motion_distance needs at least one prior")
    loaded = [_load(prior, name) for prior, name in zip(priors, _short_names(priors), strict=True)]
    spans = [
        chunk_duration(body, prior.model.config.expert.chunk_size) for prior in loaded for body in prior.embodiments
    ]
    lengths = [len(trajectory) for trajectory in source.trajectories]
    duration = min(*spans, float(np.median(lengths) - 1) / source.embodiment.control_rate)
    if duration <= 0:
        raise ValueError(
            f"{source.root}: half of its episodes, or a prior's chunks, have one step alone, in which nothing moves"
        )
    profiles, groups, episodes = recorded_profiles(source, duration, seed)
    floor = energy_floor(profiles, groups, seed=seed)
    distances = []
    for prior in loaded:
        sampled = _profiles_of(prior, duration, seed)
        least = min(len(rows) for rows, _ in sampled.values())
        pooled = np.concatenate([rows[:least] for rows, _ in sampled.values()])
        pooled = pooled[np.random.default_rng(seed).permutation(len(pooled))[: len(profiles)]]
        reached, _ = covered(profiles, pooled, groups)
        compatibility = _compatibility(prior, source)
        distances.append(
            MotionDistance(
                prior=prior.name,
                by_body={
                    name: energy_distance(rows, profiles, owners, groups, seed=seed)
                    for name, (rows, owners) in sampled.items()
                },
                all_bodies=energy_distance(pooled, profiles, None, groups, seed=seed),
                floor=floor,
                coverage=bootstrap_mean(reached, groups, seed=seed),
                duration=duration,
                steps=duration * source.embodiment.control_rate,
                episodes=episodes,
                compatibility=compatibility,
                known=_known_body(prior, source, seed) if compatibility and compatibility.fits else None,
            )
        )
    return sorted(distances, key=lambda entry: entry.distance.value)


def cannot_be_told_apart(nearest: MotionDistance, other: MotionDistance) -> bool:
    """Whether the interval of the difference of two distances from one dataset spans zero."""
    return (other.distance - nearest.distance).spans_zero


def _short_names(priors: Sequence[str | Path]) -> list[str]:
    """The folders' last components, where these tell all priors apart; otherwise the priors as they were given."""
    names = [Path(prior).resolve().name if Path(prior).is_dir() else str(prior) for prior in priors]
    return names if len(set(names)) == len(names) else [str(prior) for prior in priors]


def _load(prior: str | Path, name: str) -> _Prior:
    folder = checkpoint_folder(prior)
    found = ActionPriorConfig.get_config_dict(folder)[0].get("model_type")
    if found != ActionPriorConfig.model_type:
        raise ValueError(f"{prior} is no action prior (its model_type is {found!r}): distances are taken from rung 1")
    model = ActionPriorModel.from_pretrained(folder, dtype=torch.float32).eval()
    return _Prior(name, folder, model, PriorVLAProcessor.from_pretrained(folder).embodiments)


@torch.no_grad()
def _profiles_of(prior: _Prior, duration: float, seed: int) -> dict[str, tuple[Floats, np.ndarray]]:
    """By body: profiles of what it samples when it is told nothing, and the sample that each is of."""
    expert = prior.model.config.expert
    profiles = {}
    for index, body in enumerate(prior.embodiments):
        shape = (SAMPLES, expert.chunk_size)
        # motion in general has no window; an expert that asks for a state gets the mean one, which is zero
        blank = BodyWindows(
            embodiment=body,
            index=index,
            actions=torch.zeros(*shape, body.model_action_dim),
            mask=torch.ones(*shape, body.model_action_dim, dtype=torch.bool),
            states=torch.zeros(*shape, body.model_state_dim),
            reference=np.zeros((SAMPLES, body.state_dim), dtype=np.float32),
            groups=np.arange(SAMPLES),
            episodes=0,
        )
        chunks = sample_chunks(prior.model, blank, None, seed)
        profiles[body.name] = sampled_profiles(chunks, body, duration, seed)
    return profiles


def _compatibility(prior: _Prior, source: TrajectorySource) -> CompatibilityReport | None:
    """Whether the data fit the prior's body of the same name, if it has one, with the ranges of both when they do."""
    trained = next((body for body in prior.embodiments if body.name == source.embodiment.name), None)
    if trained is None:
        return None
    report = compatibility_report(trained, source.embodiment)
    if not report.fits:
        return report
    learned = fit_embodiments([replace(source, embodiment=trained)], prior.model.config.expert.chunk_size)[0]
    statistics = {"action": learned.action_statistics, "state": learned.state_statistics}
    known = {label: values for label, values in statistics.items() if values is not None}
    return compatibility_report(trained, source.embodiment, known)


@torch.no_grad()
def _known_body(prior: _Prior, source: TrajectorySource, seed: int) -> KnownBody:
    name = source.embodiment.name
    index = [body.name for body in prior.embodiments].index(name)
    dataset = TrajectoryDataset([source], prior.embodiments, prior.model.config.expert.chunk_size)
    windows = draw_windows(dataset, index, WINDOWS, seed)
    recorded = read_report(prior.folder).get("embodiments", {}).get(name, {})
    whole, error = windows.complete(), None
    if len(whole) > 1:
        answer = sample_chunks(prior.model, whole, encode(prior.model, whole), seed + 1)
        missed = whole.missed(answer, whole.raw(whole.chunks())).mean(axis=(1, 2))
        error = bootstrap_mean(missed, whole.groups, seed=seed)
    errors = (recorded.get("reconstruction") or {}).get("errors", {})
    return KnownBody(
        velocity=measure_velocity(prior.model, windows, windows, seed),
        reconstruction=error,
        recorded_velocity=recorded.get("velocity", {}).get("own", {}).get("value"),
        recorded_reconstruction=errors.get("reconstruction", {}).get("value"),
    )


__all__ = ["KnownBody", "MotionDistance", "cannot_be_told_apart", "motion_distance"]
