"""What the action prior and the VLA have in common: expert, trajectory encoder, flow and initialisation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init

from ..configuration.configuration_expert import MotionConfig
from .expert import ActionExpert, Modulation
from .flow_matching import integrate, interpolate, sample_times, velocity_loss
from .layers import KeyValue
from .trajectory_encoder import TrajectoryEncoder


class FlowPrediction(NamedTuple):
    """Velocity and target (B, H, D), and the entries (B, H, D) that count."""

    velocity: Tensor
    target: Tensor
    mask: Tensor

    def loss(self) -> Tensor:
        """Scalar, see `velocity_loss`."""
        return velocity_loss(*self)


class MotionPreTrainedModel(PreTrainedModel):
    """Base of the models that hold an action expert. Subclasses build on `self.expert` and `self.encoder`."""

    config: MotionConfig
    base_model_prefix = ""
    main_input_name = "actions"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ExpertLayer", "TransformerLayer"]

    def __init__(self, config: MotionConfig) -> None:
        super().__init__(config)
        for name in config.sub_configs:  # the attention of sub-configs' modules follows this model's
            if (sub_config := getattr(config, name)) is not None:
                sub_config._attn_implementation = config._attn_implementation
        self.expert = ActionExpert(config.expert)
        self.encoder = TrajectoryEncoder(config.encoder, config.expert) if config.encoder is not None else None

    def encode(
        self,
        states: Tensor | None,
        actions: Tensor,
        embodiment_ids: Tensor,
        action_mask: Tensor | None = None,
    ) -> Tensor:
        """Latent z (B, z), unit L2 norm, of a normalised trajectory: `states` (B, H, S), `actions` (B, H, D).

        `action_mask` (B, H, D) bool marks real entries. The window may be a future chunk or a past one (paper A).
        Raises ValueError when the model has no trajectory encoder, or it needs `states` and has none.
        """
        if self.encoder is None:
            raise ValueError(
                "this model has no trajectory encoder (config.encoder is None): load it from an action prior"
            )
        mask = self.real_entries(embodiment_ids, actions.shape[1], action_mask)
        return self.encoder(states, actions, embodiment_ids, mask)

    def real_entries(self, embodiment_ids: Tensor, steps: int, action_mask: Tensor | None = None) -> Tensor:
        """Bool mask (B, steps, D): the embodiment has the dimension, and `action_mask` (B, steps[, D]), if any, agrees.

        Raises ValueError on an embodiment id that the checkpoint does not know.
        """
        self.expert.require_known(embodiment_ids)
        dims = torch.tensor(self.config.expert.action_dims, device=embodiment_ids.device)
        own = torch.arange(self.config.expert.action_dim, device=dims.device) < dims[embodiment_ids][:, None]
        own = own[:, None].expand(-1, steps, -1)
        if action_mask is None:
            return own
        return own & (action_mask[..., None] if action_mask.ndim == 2 else action_mask)

    def predict_velocity(
        self,
        actions: Tensor,
        embodiment_ids: Tensor,
        context: list[KeyValue] | None,
        mask: Tensor,
        noise: Tensor,
        timestep: Tensor,
        prefix_length: Tensor | None = None,
    ) -> FlowPrediction:
        """The expert's velocity between `noise` and `actions` (B, H, D) at `timestep` (B,) or (B, H), and its target.

        The first `prefix_length` (B,) steps are shown clean, at tau = 0, and do not count in the loss.
        """
        timestep = timestep.reshape(len(timestep), -1).expand(-1, actions.shape[1])
        counted = mask
        if prefix_length is not None:
            prefix = torch.arange(actions.shape[1], device=actions.device) < prefix_length[:, None]
            timestep = timestep.masked_fill(prefix, 0.0)
            counted = mask & ~prefix[..., None]
        actions = actions.masked_fill(~mask, 0)
        velocity = self.expert(interpolate(actions, noise, timestep), timestep, embodiment_ids, context, mask)
        return FlowPrediction(velocity, noise - actions, counted)

    def draw(
        self,
        actions: Tensor,
        noise: Tensor | None = None,
        timestep: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Noise like `actions` and training times (B,), each drawn from `generator` unless it is given."""
        config = self.config
        if noise is None:
            noise = torch.randn(actions.shape, dtype=actions.dtype, device=actions.device, generator=generator)
        if timestep is None:
            timestep = sample_times(
                config.time_distribution,
                len(actions),
                alpha=config.time_alpha,
                beta=config.time_beta,
                device=actions.device,
                generator=generator,
            )
        return noise, timestep

    def generate(
        self,
        embodiment_ids: Tensor,
        context: list[KeyValue] | None,
        *,
        num_inference_steps: int | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        prefix_actions: Tensor | None = None,
        prefix_length: Tensor | None = None,
        action_mask: Tensor | None = None,
        scheduler: dict[str, Any] | None = None,
    ) -> Tensor:
        """Integrates a chunk (B, H, D) from noise with the expert's velocity; entries that are not real are zero.

        Noise is drawn on the generator's device (without one, on the CPU) and moved, so that a seed means one chunk.
        """
        expert = self.config.expert
        shape = (len(embodiment_ids), expert.chunk_size, expert.action_dim)
        if noise is None:
            noise = torch.randn(shape, device=generator.device if generator else None, generator=generator)
        elif noise.shape != shape:
            raise ValueError(f"noise has shape {tuple(noise.shape)}, this model draws chunks of shape {shape}")
        mask = self.real_entries(embodiment_ids, expert.chunk_size, action_mask)
        actions = integrate(
            lambda x, tau: self.expert(x, tau, embodiment_ids, context, mask),
            noise.to(embodiment_ids.device),
            scheduler=scheduler or self.config.scheduler,
            num_inference_steps=num_inference_steps or self.config.num_inference_steps,
            prefix_actions=prefix_actions,
            prefix_length=prefix_length,
        )
        return actions.masked_fill(~mask, 0)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # LeCun-normal maps keep the small widths used here at unit scale; embeddings start small, as in Llama.
        # Newer transformers visit only modules with parameters of their own, so the rule is about those.
        if isinstance(module, Modulation):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=max(module.in_features, 1) ** -0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.RMSNorm):
            init.ones_(module.weight)
        else:
            for parameter in module.parameters(recurse=False):
                init.normal_(parameter, std=0.02)


__all__ = ["FlowPrediction", "MotionPreTrainedModel"]
