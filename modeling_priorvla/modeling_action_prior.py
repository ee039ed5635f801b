"""Rung 1: the action prior of paper A, an action autoencoder with a flow-matching decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from ..configuration.configuration_action_prior import ActionPriorConfig
from .flow_draws import FlowDraws
from .motion_model import MotionPreTrainedModel
from .trajectory_encoder import unit_norm


@dataclass
class ActionPriorOutput(ModelOutput):
    """`loss` scalar (L_recon), `latent` (B, z) as the encoder gives it, `velocity` (B, H, D) as the expert does."""

    loss: Tensor | None = None
    latent: Tensor | None = None
    velocity: Tensor | None = None


class ActionPriorModel(MotionPreTrainedModel):
    """How robots move: encodes a trajectory into one unit-norm latent and generates chunks from it (paper A, Stage 1).

    Without a latent it samples from what it knows of motion in general: the learned null stands in its place.
    """

    config: ActionPriorConfig
    config_class = ActionPriorConfig

    def __init__(self, config: ActionPriorConfig) -> None:
        super().__init__(config)
        self.post_init()

    def forward(
        self,
        actions: Tensor,
        embodiment_ids: Tensor,
        states: Tensor | None = None,
        action_mask: Tensor | None = None,
        noise: Tensor | None = None,
        timestep: Tensor | None = None,
        prefix_length: Tensor | None = None,
        draws: FlowDraws | None = None,
        generator: torch.Generator | None = None,
    ) -> ActionPriorOutput:
        """Flow-matching regression L_recon of `actions` (B, H, D), normalised, from their own latent.

        Args:
            embodiment_ids: (B,) long, the order of the checkpoint's embodiments.
            states: (B, H, S) normalised states of the same steps (not needed when `encoder.states="without"`).
            action_mask: (B, H, D) bool, true where real.
            noise: (B, H, D); timestep: (B,) or (B, H) in [0, 1], 1 = noise. Default: those of `draws`.
            prefix_length: (B,) long; so many leading steps are shown clean and do not count in the loss.
            draws: everything random, see `draw`; default: drawn from `generator`.

        In training mode the latent is noised and sometimes dropped (`latent_noise`, `latent_dropout`), and some windows
        have a clean prefix (`prefix_probability`) unless `prefix_length` is given.
        """
        mask = self.real_entries(embodiment_ids, actions.shape[1], action_mask)
        latent = self.encode(states, actions, embodiment_ids, action_mask)
        if draws is None:
            draws = self.draw(len(actions), actions.shape[1], generator)
        noise = draws.noise if noise is None else noise
        timestep = draws.timestep if timestep is None else timestep
        if prefix_length is None:
            prefix_length = self.training_prefix(mask, draws)
        shown, dropped = latent, None
        if self.training:
            shown = noisy_latent(latent, self.config.latent_noise, draws.latent_offset)
            dropped = draws.latent_drop < self.config.latent_dropout
        context = self.expert.encode_context(
            embodiment_ids, shown, dropped, states[:, 0] if states is not None else None
        )
        flow = self.predict_velocity(actions, embodiment_ids, context, mask, noise, timestep, prefix_length)
        return ActionPriorOutput(loss=flow.loss(), latent=latent, velocity=flow.velocity)

    @torch.no_grad()
    def sample_actions(
        self,
        latent: Tensor | None = None,
        *,
        embodiment_ids: Tensor,
        state: Tensor | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Normalised chunks (B, H, D), float32.

        Args:
            latent: (B, z) unit norm, or None: motion in general.
            embodiment_ids: (B,) long. `state`: (B, S), only for an expert whose context has it.
            num_inference_steps: default `config.num_inference_steps`.
            noise (B, H, D) or generator: where randomness comes from; the same seed gives the same chunk.
            prefix_actions (B, P, D), prefix_length (B,): steps that are already decided; kept as they are.
            action_mask: (B, H, D) bool, further entries to leave out.
            scheduler: `{"_class_name": ..., ...}`, instead of the config's.
        """
        context = self.expert.encode_context(embodiment_ids, latent, state=state)
        return self.generate(embodiment_ids, context, **sampling)

    @torch.no_grad()
    def reconstruct(
        self,
        states: Tensor | None,
        actions: Tensor,
        embodiment_ids: Tensor,
        action_mask: Tensor | None = None,
        **sampling: Any,
    ) -> Tensor:
        """Encodes a trajectory and samples a chunk from its latent; arguments of `encode` and `sample_actions`."""
        latent = self.encode(states, actions, embodiment_ids, action_mask)
        state = states[:, 0] if states is not None else None
        return self.sample_actions(
            latent, embodiment_ids=embodiment_ids, state=state, action_mask=action_mask, **sampling
        )


def noisy_latent(latent: Tensor, noise: float, offset: Tensor) -> Tensor:
    """`latent` (B, z) moved by `offset` (B, z), standard normal and scaled to an expected norm of `noise`, and brought
    back to the unit sphere (our choice)."""
    if noise == 0:
        return latent
    return unit_norm(latent + offset * noise / latent.shape[-1] ** 0.5)


__all__ = ["ActionPriorModel", "ActionPriorOutput"]
