"""Chunks of a model under instructions of our choice, and the observations to choose them for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..configuration.embodiment import Embodiment
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .data.observation_features import as_features
from .data.trajectory import Trajectory, TrajectorySource

HISTORY = ("history_states", "history_actions", "history_mask")
FELT = ("state", "embodiment_ids", *HISTORY)
SEEN = ("pixel_values", "pixel_attention_mask", "vision_hidden_states", "vision_mask")
ROWS_AT_ONCE = 64  # chunks in a pass


class ModelSampler:
    """The `ChunkSampler` of a model and its processor. An observation is one of two things:

    * raw: `{"state": (S,), "images": {camera: (h, w, 3) uint8}}`, `"embodiment"` where the processor has several, and
      the processor's `history_...` if the policy has a past;
    * one entry of a dataset of observations, `dataset[index]`: cached features or pixels, normalised state and history.
      The words in it are not read. Cached features do where the backbone reads words without the image.

    Words are always encoded anew, by the model's backbone.

    Args:
        model: with its backbone attached; put into eval mode.
        num_inference_steps: denoising steps; default the config's.

    Raises:
        ValueError: when no backbone is attached.
    """

    def __init__(
        self, model: PriorVLAModel, processor: PriorVLAProcessor, *, num_inference_steps: int | None = None
    ) -> None:
        if model.backbone is None:
            raise ValueError("no backbone is attached to read instructions with: call model.attach_backbone()")
        self.model, self.processor = model.eval(), processor
        self.num_inference_steps = num_inference_steps

    @torch.no_grad()
    def sample_chunks(
        self, observation: Mapping[str, Any], instructions: Sequence[str], seeds: Sequence[int]
    ) -> NDArray[np.float32]:
        """Normalised chunks (I, N, H, D), D the embodiment's own model dims; see `ChunkSampler`.

        Image and words are encoded once for every instruction, then as many chunks are drawn at once as fit.
        """
        inputs = self._observed(observation)
        embodiment_id = inputs["embodiment_ids"][:1]
        body = self.processor.embodiments[int(embodiment_id)]
        inputs = {key: value.expand(len(instructions), *value.shape[1:]) for key, value in inputs.items()}
        words = self.processor(embodiment=body.name, text=list(instructions)).to(self.model.device)
        felt, seen = ({key: inputs[key] for key in keys if key in inputs} for keys in (FELT, SEEN))
        vision, language = self.model.encode_observation(
            **as_features(seen, self.model.config.taps),
            input_ids=words["input_ids"],
            attention_mask=words["attention_mask"],
        )
        noise = [self.model.draw_noise(embodiment_id, torch.Generator().manual_seed(seed)) for seed in seeds]
        chunks = []
        for drawn in torch.cat(noise).split(self._seeds_at_once(len(instructions))):
            times = len(drawn)
            chunk = self.model.sample_actions(
                **{key: value.repeat_interleave(times, dim=0) for key, value in felt.items()},
                vision_features=_repeated(vision, times),
                language_features=_repeated(language, times),
                noise=drawn.repeat(len(instructions), 1, 1),
                num_inference_steps=self.num_inference_steps,
            )
            chunks.append(chunk.unflatten(0, (-1, times)))
        return torch.cat(chunks, dim=1)[..., : body.model_action_dim].float().cpu().numpy()

    def _seeds_at_once(self, instructions: int) -> int:
        """A tail of the backbone's own continues from keys and values, which there are once for every instruction."""
        return 1 if self.model.config.tail == "backbone" else max(1, ROWS_AT_ONCE // instructions)

    def _observed(self, observation: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the model is to see and feel, (1, ...) each."""
        if "embodiment_ids" in observation:
            inputs = {key: observation[key][None] for key in (*FELT, *SEEN) if key in observation}
        else:
            embodiment = observation.get("embodiment") or self._only_embodiment()
            given = {key: observation[key] for key in ("state", "images", *HISTORY) if key in observation}
            prepared = self.processor(embodiment=embodiment, **given)
            inputs = {key: prepared[key] for key in (*FELT, *SEEN) if key in prepared}
        return {key: value.to(self.model.device) for key, value in inputs.items()}

    def _only_embodiment(self) -> str:
        names = [embodiment.name for embodiment in self.processor.embodiments]
        if len(names) != 1:
            raise ValueError(
                f"an observation does not say which of {', '.join(names)} it is of: give its name under 'embodiment'"
            )
        return names[0]


def _repeated(features: Any, times: int) -> Any:
    """Each row of backbone features so many times, one after the other."""
    if features is None or times == 1:
        return features
    repeated = {key: getattr(features, key).repeat_interleave(times, dim=0) for key in ("hidden_states", "mask")}
    return replace(features, **repeated, cache=None)


def draw_observations(
    sources: Sequence[TrajectorySource], processor: PriorVLAProcessor, count: int = 32, seed: int = 0
) -> list[dict[str, Any]]:
    """Raw observations at random steps of random episodes, every task in its turn; `sources` have frames.

    So that all instructions are heard, a dataset's long tail of tasks too (our choice). An episode is used twice only
    when all of its task have been. Each has `embodiment`, `state`, `images` and `instruction`.
    """
    random = np.random.default_rng(seed)
    episodes = defaultdict(list)
    for source in sources:
        for trajectory in source.trajectories:
            episodes[trajectory.task].append((source.embodiment.name, trajectory))
    turns = [[own[place] for place in random.permutation(len(own))] for own in episodes.values()]
    observations = []
    for number in range(count if turns else 0):
        own = turns[number % len(turns)]
        body, trajectory = own[number // len(turns) % len(own)]
        step = int(random.integers(len(trajectory)))
        observations.append(_observation(trajectory, step, processor.embodiment(body)))
    return observations


def _observation(trajectory: Trajectory, step: int, embodiment: Embodiment) -> dict[str, Any]:
    if trajectory.frames is None:
        raise ValueError(f"{trajectory.source} was loaded without frames: use load_trajectories(..., frames=True)")
    return {
        "embodiment": embodiment.name,
        "state": trajectory.states[step],
        "images": {camera: trajectory.frames.read(camera, [step])[0] for camera in embodiment.cameras},
        "instruction": trajectory.task,
    }


__all__ = ["ModelSampler", "draw_observations"]
