"""Does a policy listen? How far its actions move when the instruction changes and what it sees does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from ..hub_cards.listening import PREFIX, listening
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .chunk_distances import DRAWS, Bootstrapped, Floats
from .instruction_sampling import ModelSampler
from .paraphrases import Paraphrases, paraphrase_of


@runtime_checkable
class ChunkSampler(Protocol):
    """What is measured; `ModelSampler` makes one of a model and its processor."""

    def sample_chunks(
        self, observation: Mapping[str, Any], instructions: Sequence[str], seeds: Sequence[int]
    ) -> NDArray[np.floating[Any]]:
        """Chunks (I, N, H, D) for one observation: each of I `instructions` under each of N `seeds` of the noise.

        Actions are normalised and of the robot's own D dims. A seed is the same noise under every instruction. The
        observation's own instruction is not read.
        """
        ...


@runtime_checkable
class ModelHolder(Protocol):
    """What has a model, its backbone attached, and its processor, as a deployed `PriorVLAPolicy` does."""

    @property
    def model(self) -> PriorVLAModel: ...

    @property
    def processor(self) -> PriorVLAProcessor: ...


@dataclass(frozen=True)
class Movement:
    """How far a change moves the actions, against chance; see `language_sensitivity`.

    Args:
        effect: 1 - chance / change, median over observations: 0 when the change does nothing, 1 when chance is nothing
            beside it. Unbiased, so it can lie slightly below 0.
    """

    effect: Bootstrapped

    @property
    def times(self) -> float:
        """The same as a multiple of chance: 1 when the change does nothing; infinite when chance moves nothing."""
        return _times(self.effect.value)

    @property
    def interval(self) -> tuple[float, float]:
        """Of `times`, 95 %: observations drawn again."""
        low, high = self.effect.interval
        return _times(low), _times(high)


@dataclass(frozen=True)
class LanguageSensitivity:
    """How far another instruction moves the actions.

    Args:
        swap: to another request of the same scene where the observation has `alternatives`, else to the instruction of
            another observation; None when all have the same.
        paraphrase: to other words for the same.
        empty: to no words at all.
        floor: to the same instruction, with other noise: nothing but what so few chunks and observations leave open.
        spread: how far chance moves the actions, that is, how far two chunks of one instruction lie apart: root mean
            square over a chunk's entries in normalised action units, median over observations.
        observations, samples: how many there were, and the chunks drawn for each instruction of each.
    """

    swap: Movement | None
    paraphrase: Movement
    empty: Movement
    floor: Movement
    spread: float
    observations: int
    samples: int

    def metrics(self) -> dict[str, float]:
        """`language_sensitivity/swap` (a multiple of chance), `.../swap_low`, `.../swap_high` (95 %) and
        `.../swap_effect`; likewise `paraphrase`, `empty` and `floor`; and `language_sensitivity/spread`.

        What has no finite value is left out: the swap where there is none, multiples where chance moves nothing.
        """
        values = {"spread": self.spread}
        for kind in ("swap", "paraphrase", "empty", "floor"):
            if movement := getattr(self, kind):
                low, high = movement.interval
                values |= {kind: movement.times, f"{kind}_low": low, f"{kind}_high": high}
                values[f"{kind}_effect"] = movement.effect.value
        return {PREFIX + name: value for name, value in values.items() if np.isfinite(value)}

    def describe(self) -> str:
        """A few lines for the terminal: the multiples of chance with their intervals, and what follows; as in cards."""
        _, heard = listening(self.metrics())
        assert heard is not None  # the floor always has a value
        return "\n".join(
            [
                f"Does it listen? How far its actions move when the instruction changes and nothing else, over how far "
                f"chance moves them ({self.observations} observations):",
                *(f"  {change:<22}{times:>7}  [{interval}]" for change, times, interval in heard.rows),
                heard.answer,
            ]
        )


def language_sensitivity(
    policy: ChunkSampler | ModelHolder,
    observations: Sequence[Mapping[str, Any]],
    *,
    paraphrases: Paraphrases | None = None,
    samples: int = 16,
    seed: int = 0,
) -> LanguageSensitivity:
    """Measures whether a policy listens: its actions under a changed instruction, image and state as they are.

    Compared are two sets of chunks, flat and in normalised units: those of the observation's own instruction, and those
    of a changed one. *Change* is the mean distance of a chunk of the one to a chunk of the other, *chance* the mean
    distance of two chunks of the same set. change / chance is told as a multiple, "8 times as far as chance", and
    1 - chance / change as the effect: half the energy distance 2 (change - chance) over the change, Szekely & Rizzo's
    energy coefficient, which is 0 for equal distributions only and at most 1 (our choice among distances: it sees a
    change of any kind, needs neither bins nor a kernel, and does not depend on the number of samples). In a policy that
    a swap shifts by s standard deviations of its noise in every entry the multiple is about sqrt(1 + s^2 / 2).

    All distances are between chunks of different noise, so chance is honest; yet both sets are made with the same
    draws. What the draws do to a set they then do to the other, and cancel: a policy that does not listen reads 1 up to
    rounding, whatever was drawn. `floor` has no such help: it compares the same instruction under two independent sets
    of draws, which can differ by luck alone. Its interval says by how much, to either side of 1, and is what a change
    must exceed to be called listening.

    Args:
        policy: a deployed policy, or whatever else samples chunks.
        observations: of different scenes, best from different episodes, each with its "instruction" beside what the
            policy reads (see `ModelSampler`); one that names no embodiment is of the deployed policy's own. At late
            steps of an episode the image often decides what is done next: take steps from all of it. `alternatives`
            are other instructions that its scene allows, if they are known: of things that are not there a policy may
            well take no notice. They should ask for other actions within the chunk; what an instruction changes only
            later does not show.
        paraphrases: instruction -> other words for it, one or several; what is not in it is reworded by
            `paraphrase_of`. One is drawn for each observation.
        samples: chunks for each instruction of each observation.
        seed: of the noise, of what is said instead of what, and of the intervals.

    Raises:
        ValueError: fewer than two observations or samples, an observation without instruction, a chunk that is not
            finite.
        TypeError: the policy is neither of the two.
    """
    if not isinstance(policy, ChunkSampler):
        policy, observations = _deployed(policy, observations)
    if len(observations) < 2 or samples < 2:
        raise ValueError(f"got {len(observations)} observations and {samples} samples, both must be at least 2")
    random = np.random.default_rng(seed)
    known = sorted({_instruction(observation, index) for index, observation in enumerate(observations)})
    effects: dict[str, list[float]] = {}
    spreads = []
    for index, observation in enumerate(tqdm(observations, desc="does it listen?", unit="observation", delay=1)):
        own = _instruction(observation, index)
        others = [text for text in observation.get("alternatives") or known if text != own]
        changed = _changed(own, others, paraphrases, random)
        seeds, fresh = random.integers(2**31, size=(2, samples)).tolist()
        chunks = _flat(policy.sample_chunks(observation, [own, *changed.values()], seeds))
        again = _flat(policy.sample_chunks(observation, [own], fresh))
        for kind, other in zip((*changed, "floor"), (*chunks[1:], again[0]), strict=True):
            effects.setdefault(kind, []).append(_effect(chunks[0], other))
        spreads.append(_mean_distance(chunks[0], chunks[0]) / chunks.shape[-1] ** 0.5)
    movements = {
        kind: Movement(_bootstrap_median(np.array(values), seed, either_sign=kind == "floor"))
        for kind, values in effects.items()
    }
    return LanguageSensitivity(
        swap=movements.get("swap"),
        paraphrase=movements["paraphrase"],
        empty=movements["empty"],
        floor=movements["floor"],
        spread=float(np.median(spreads)),
        observations=len(observations),
        samples=samples,
    )


def _deployed(
    policy: ModelHolder, observations: Sequence[Mapping[str, Any]]
) -> tuple[ModelSampler, Sequence[Mapping[str, Any]]]:
    """The sampler of a policy, with its denoising steps, and `observations` of the embodiment that it drives."""
    if not isinstance(policy, ModelHolder):
        raise TypeError(
            f"a {type(policy).__name__} is no policy whose chunks could be sampled: pass ModelSampler(model, "
            "processor), or what has a .model and its .processor"
        )
    steps = getattr(policy, "num_inference_steps", None)
    sampler = ModelSampler(policy.model, policy.processor, num_inference_steps=steps)
    if (body := getattr(policy, "embodiment", None)) is not None:
        observations = [{"embodiment": body.name, **observation} for observation in observations]
    return sampler, observations


def _changed(
    own: str, others: Sequence[str], paraphrases: Paraphrases | None, random: np.random.Generator
) -> dict[str, str]:
    """What is said instead of an instruction; no swap where there are no `others`."""
    changed = {"paraphrase": paraphrase_of(own, int(random.integers(1000)), paraphrases), "empty": ""}
    if others:
        changed["swap"] = others[int(random.integers(len(others)))]
    return changed


def _effect(own: Floats, other: Floats) -> float:
    """1 - chance / change of two sets (N, F), whose rows of one index share their noise."""
    change = _mean_distance(own, other)
    chance = (_mean_distance(own, own) + _mean_distance(other, other)) / 2
    return 1 - chance / change if change > 0 else 0.0


def _mean_distance(a: Floats, b: Floats) -> float:
    """Over pairs of rows (N, F) of different index: a row is no neighbour of itself, nor of its own noise."""
    apart = np.linalg.norm(a[:, None] - b, axis=-1)
    np.fill_diagonal(apart, 0)
    return float(apart.sum() / (len(a) * (len(a) - 1)))


def _bootstrap_median(values: Floats, seed: int, either_sign: bool) -> Bootstrapped:
    """The median of `values` (N,), with values drawn again; of `either_sign` when they are known to lie around 0.

    Few values may all lie on one side by luck, and their own interval would then leave 0 out.
    """
    random = np.random.default_rng(seed)
    drawn = values[random.integers(len(values), size=(DRAWS, len(values)))]
    if either_sign:
        drawn = drawn * random.choice([-1, 1], size=drawn.shape)
    return Bootstrapped(float(np.median(values)), np.median(drawn, axis=1))


def _flat(chunks: NDArray[np.floating[Any]]) -> Floats:
    """(I, N, H, D) -> (I, N, H * D). Raises ValueError when an entry is not finite."""
    if not np.isfinite(chunks).all():
        raise ValueError(
            "the policy gives actions that are not finite, so that nothing can be said of it: has it diverged?"
        )
    return np.asarray(chunks, dtype=np.float64).reshape(*chunks.shape[:2], -1)


def _times(effect: float) -> float:
    return 1 / (1 - effect) if effect < 1 else float("inf")


def _instruction(observation: Mapping[str, Any], index: int) -> str:
    if not (instruction := observation.get("instruction")):
        raise ValueError(f"observation {index} has no instruction: give it one under 'instruction', or leave it out")
    return str(instruction)


__all__ = ["ChunkSampler", "LanguageSensitivity", "ModelHolder", "Movement", "language_sensitivity"]
