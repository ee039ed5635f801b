"""Paper A's trajectory encoder E: a window of states and actions in, one unit-norm latent out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..configuration.configuration_expert import EncoderConfig, ExpertConfig
from .layers import EmbodimentLinear, SoftTokens, TransformerLayer, rotary_embedding


class TrajectoryEncoder(nn.Module):
    """A bidirectional transformer over `[cls] [p_k] s_1 a_1 ... s_H a_H`; the output at cls is the latent.

    The same network reads future chunks (the distillation target) and past windows (the history token). A state and
    its action share a position; what is which is told by a type embedding (our choice).
    """

    def __init__(self, config: EncoderConfig, expert: ExpertConfig) -> None:
        super().__init__()
        self.config = config
        self.rope_theta = expert.rope_theta
        hidden_size, bodies = config.hidden_size, len(expert.embodiments)
        self.cls = nn.Parameter(torch.empty(hidden_size))
        self.action_type = nn.Parameter(torch.empty(hidden_size))
        self.action_in_proj = EmbodimentLinear(expert.action_dims, [hidden_size] * bodies)
        if config.states == "with":
            self.state_type = nn.Parameter(torch.empty(hidden_size))
            self.state_proj = EmbodimentLinear(expert.state_dims, [hidden_size] * bodies)
        if config.num_soft_tokens:
            self.soft_tokens = SoftTokens(bodies, config.num_soft_tokens, hidden_size)
        self.layers = nn.ModuleList(
            TransformerLayer(
                config,
                hidden_size,
                config.intermediate_size,
                config.num_attention_heads,
                config.head_dim,
                eps=expert.rms_norm_eps,
            )
            for _ in range(config.num_hidden_layers)
        )
        self.final_norm = nn.RMSNorm(hidden_size, eps=expert.rms_norm_eps)
        self.latent_out_proj = nn.Linear(hidden_size, expert.latent_dim)

    def forward(
        self, states: Tensor | None, actions: Tensor, embodiment_ids: Tensor, action_mask: Tensor | None = None
    ) -> Tensor:
        """`states` (B, T, S) and `actions` (B, T, D), normalised -> latent (B, z) of unit L2 norm.

        `action_mask` (B, T, D) bool: steps without a true entry are padding, before or after the others. `states` is
        unused, and may be None, when the config says `states="without"`. T need not be the chunk length.
        """
        batch_size, steps = actions.shape[:2]
        dtype = self.latent_out_proj.weight.dtype
        valid = torch.ones(batch_size, steps, dtype=torch.bool, device=actions.device)
        if action_mask is not None:
            valid = action_mask.any(dim=-1)
            actions = actions.masked_fill(~action_mask, 0)
        leading = [self.cls.expand(batch_size, 1, -1)]
        if self.config.num_soft_tokens:
            leading.append(self.soft_tokens(embodiment_ids))
        trajectory = [self.action_in_proj(actions.to(dtype), embodiment_ids) + self.action_type]
        if self.config.states == "with":
            if states is None:
                raise ValueError("this trajectory encoder reads states (encoder.states='with'): pass states=(B, T, S)")
            states = states.masked_fill(~valid[..., None], 0).to(dtype)
            trajectory.append(self.state_proj(states, embodiment_ids) + self.state_type)
        tokens = torch.cat(leading + trajectory, dim=1)
        ahead = tokens.shape[1] - steps * len(trajectory)
        mask = None
        if action_mask is not None:
            mask = nn.functional.pad(valid.repeat(1, len(trajectory)), (ahead, 0), value=True)[:, None, None, :]
        counted = valid.cumsum(dim=1)  # of what is there, so that padding at either end changes nothing
        positions = nn.functional.pad(counted.repeat(1, len(trajectory)), (ahead, 0))[:, None]
        rotary = rotary_embedding(positions, self.config.head_dim, self.rope_theta)
        for layer in self.layers:
            tokens = layer(tokens, mask, rotary)
        return unit_norm(self.latent_out_proj(self.final_norm(tokens[:, 0])))


def unit_norm(latent: Tensor) -> Tensor:
    """`latent` (B, z) on the unit sphere, where z and z' live (our choice: paper A says "normalised")."""
    return nn.functional.normalize(latent.float(), dim=-1)


__all__ = ["TrajectoryEncoder", "unit_norm"]
