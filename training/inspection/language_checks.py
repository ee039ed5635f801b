"""What the instructions can teach: how many there are, and whether an episode's start gives its instruction away.

Where the first state or picture already says which instruction was given, a policy loses nothing by not listening, and
learns not to (APT, arXiv 2606.12366: an episode has many frames but one instruction).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .findings import Finding, Severity, counted, listed
from .recording import Recording
from .thresholds import InspectionThresholds

MOST_EPISODES = 1000  # of which the nearest neighbour is sought


@dataclass(frozen=True)
class Language:
    """The instructions of a dataset.

    Args:
        episodes: number of episodes by instruction, the most frequent first.
        entropy: of the instructions over episodes, as a share of what as many equally frequent ones have; 1 is even.
        majority: how often guessing the most frequent instruction is right, among the episodes that were guessed.
        predicted: how often the nearest other episode has the same instruction, by what was compared (`first state`,
            `first picture`); empty where there are too few episodes to say.
    """

    episodes: dict[str, int]
    entropy: float
    majority: float = 0.0
    predicted: dict[str, float] = field(default_factory=dict)


def measure_language(
    recording: Recording, pictures: Mapping[int, NDArray[np.float32]], thresholds: InspectionThresholds
) -> Language:
    """The instructions of `recording`; `pictures` (features,) of first frames by the episode's place in it.

    Leave-one-out nearest neighbour among the episodes whose instruction another one has too.
    """
    tasks = [trajectory.task.strip() for trajectory in recording.trajectories]
    counts = Counter(tasks)
    shares = np.array(list(counts.values())) / len(tasks)
    entropy = float(-(shares * np.log(shares)).sum() / np.log(len(counts))) if len(counts) > 1 else 0.0
    ordered = dict(counts.most_common())
    features: dict[str, Mapping[int, NDArray[np.float32]]] = {"first picture": pictures}
    if recording.states.shape[1]:
        features["first state"] = dict(enumerate(recording.states[recording.starts]))
    predicted: dict[str, float] = {}
    majority = 0.0
    for name, vectors in features.items():
        places = [place for place in vectors if counts[tasks[place]] > 1]
        if len(places) > MOST_EPISODES:
            places = [places[i] for i in np.linspace(0, len(places) - 1, MOST_EPISODES).astype(int)]
        labels = [tasks[place] for place in places]
        if len(places) >= thresholds.least_episodes and len(set(labels)) > 1:
            predicted[name] = _leave_one_out(np.stack([vectors[place] for place in places]), labels)
            majority = max(majority, Counter(labels).most_common(1)[0][1] / len(labels))
    return Language(ordered, entropy, majority, predicted)


def _leave_one_out(features: NDArray[np.float32], labels: list[str]) -> float:
    """How often the nearest other row of `features` (n, f), each feature to unit deviation, has the same label."""
    centred = features.astype(np.float64) - features.mean(0)
    deviation = centred.std(0)
    scaled = centred[:, deviation > 1e-6] / deviation[deviation > 1e-6]
    squares = (scaled**2).sum(1)
    apart = squares[:, None] + squares - 2 * scaled @ scaled.T
    np.fill_diagonal(apart, np.inf)
    _, classes = np.unique(labels, return_inverse=True)
    return float((classes[apart.argmin(1)] == classes).mean())


def check_language(recording: Recording, language: Language, thresholds: InspectionThresholds) -> list[Finding]:
    """`empty-instructions`, `single-instruction`, `instruction-variants`, `instruction-predictable`."""
    findings = []
    empty = [place for place, trajectory in enumerate(recording.trajectories) if not trajectory.task.strip()]
    if empty:
        findings.append(
            Finding(
                "empty-instructions",
                Severity.WARNING,
                f"{counted(len(empty), 'episode')} of {len(recording.trajectories)} have an empty instruction.",
                "Write what was done in these episodes; for training on motion alone it does not matter.",
                episodes=recording.named(empty),
                numbers={"count": len(empty)},
            )
        )
    if len(language.episodes) == 1 and not empty:
        findings.append(
            Finding(
                "single-instruction",
                Severity.INFO,
                f"All episodes have one instruction: {next(iter(language.episodes))!r}.",
                "Nothing is lost for an action prior. A policy cannot learn to listen from this alone: mix in data "
                "with other instructions, or expect it to do this one thing.",
                numbers={"instructions": 1},
            )
        )
    return [*findings, *_variants(language), *_predictable(language, thresholds)]


def _variants(language: Language) -> list[Finding]:
    """Instructions that differ in case, spaces or punctuation alone."""
    groups: dict[str, list[str]] = {}
    for instruction in language.episodes:
        plain = "".join(character for character in instruction.casefold() if character.isalnum())
        groups.setdefault(plain, []).append(instruction)
    twins = [group for group in groups.values() if len(group) > 1]
    if not twins:
        return []
    shown = [" = ".join(repr(instruction) for instruction in group) for group in twins]
    return [
        Finding(
            "instruction-variants",
            Severity.INFO,
            f"{counted(len(twins), 'instruction')} is written in several ways: {listed(shown, 2)}."
            if len(twins) == 1
            else f"{len(twins)} instructions are written in several ways: {listed(shown, 2)}.",
            "Write each in one way, so that it counts as one task.",
            numbers={"count": len(twins)},
        )
    ]


def _predictable(language: Language, thresholds: InspectionThresholds) -> list[Finding]:
    least = max(thresholds.predictable_share, language.majority + thresholds.predictable_gain)
    telling = {name: share for name, share in language.predicted.items() if share >= min(least, 1.0)}
    if not telling:
        return []
    shown = " and ".join(f"the {name} in {share:.0%}" for name, share in telling.items())
    return [
        Finding(
            "instruction-predictable",
            Severity.WARNING,
            f"The instruction is predictable from {shown} of episodes (always guessing the most frequent is right in "
            f"{language.majority:.0%}): a policy can ignore language here.",
            "Record several instructions from the same starts and scenes, or begin with a vision-action prior, which "
            "has no language to ignore; then test with instructions that the scene does not give away.",
            numbers={
                "majority": language.majority,
                **{name.replace(" ", "_"): share for name, share in telling.items()},
            },
        )
    ]


__all__ = ["Language", "check_language", "measure_language"]
