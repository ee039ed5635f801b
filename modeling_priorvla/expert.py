"""The action expert: one network on every rung and in every host.

A sequence is context tokens and then H action tokens. Context tokens see each other and neither actions nor time, so
their keys and values are computed once a chunk; action tokens see everything. Flow time acts on action tokens alone,
token by token, by scale, shift and a gate that is zero at birth.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration.configuration_expert import ExpertConfig
from .layers import Attention, EmbodimentLinear, GatedMLP, KeyValue, Rotary, SoftTokens, rotary_embedding

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0  # of the time embedding, as pi0


class TimeEmbedding(nn.Module):
    """Flow time in [0, 1] -> (…, d): sinusoids of periods 0.004 to 4, then a two-layer MLP."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.linear_in = nn.Linear(hidden_size, hidden_size)
        self.linear_out = nn.Linear(hidden_size, hidden_size)

    def forward(self, timestep: Tensor) -> Tensor:
        fraction = torch.linspace(0, 1, self.hidden_size // 2, device=timestep.device, dtype=torch.float32)
        period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
        angles = timestep.float()[..., None] * (2 * math.pi / period)
        sinusoids = torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.linear_in.weight.dtype)
        return self.linear_out(nn.functional.silu(self.linear_in(sinusoids)))


class Modulation(nn.Linear):
    """Scales, shifts and gates from the time embedding; all zero at birth."""

    def forward(self, time: Tensor, clean: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """`time` (B, 1 or H, d) -> (B, 1 or H, out).

        With `clean` (B, H) bool, `time` is (B, 2, d), the chunk's own and that of tau = 0: two products a window
        instead of one a step, of which each step takes its own.
        """
        modulation = super().forward(time)
        if clean is None:
            return modulation
        own, zero = modulation.split(1, dim=1)
        return torch.where(clean[..., None], zero, own)


class ExpertLayer(GradientCheckpointingLayer):
    """Pre-RMSNorm self-attention and gated MLP; action tokens are modulated by time, context tokens are not."""

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        hidden_size = config.hidden_size
        self.input_norm = nn.RMSNorm(hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(
            config,
            hidden_size,
            config.num_attention_heads,
            config.head_dim,
            num_key_value_heads=config.num_key_value_heads,
        )
        self.mlp_norm = nn.RMSNorm(hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMLP(hidden_size, config.intermediate_size)
        self.modulation = Modulation(hidden_size, 6 * hidden_size)

    def forward(
        self,
        tokens: Tensor,
        time: Tensor | None = None,
        context: KeyValue | None = None,
        mask: Tensor | None = None,
        rotary: Rotary | None = None,
        clean: Tensor | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """Advances `tokens` (B, T, d) by one layer; also returns their own keys and values.

        Action tokens come with `time` (see `Modulation`) and see `context` and each other; context tokens come alone.
        Both go through `forward`, because that is where FSDP has the weights together.
        """
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = (
            (0.0, 0.0, 1.0, 0.0, 0.0, 1.0) if time is None else self.modulation(time, clean).chunk(6, dim=-1)
        )
        normed = self.input_norm(tokens) * (1 + scale_a) + shift_a
        own = self.self_attn.keys_values(normed, rotary)
        seen = own
        if context is not None:
            seen = torch.cat([context[0], own[0]], dim=2), torch.cat([context[1], own[1]], dim=2)
        tokens = tokens + gate_a * self.self_attn(normed, seen, mask, rotary)
        normed = self.mlp_norm(tokens) * (1 + scale_m) + shift_m
        return tokens + gate_m * self.mlp(normed), own


class ActionExpert(nn.Module):
    """Velocity of a noisy chunk, given what the context tokens say. See `ExpertConfig` for its shape."""

    def __init__(self, config: ExpertConfig) -> None:
        super().__init__()
        self.config = config
        hidden_size, bodies = config.hidden_size, len(config.embodiments)
        self.action_in_proj = EmbodimentLinear(config.action_dims, [hidden_size] * bodies)
        self.action_out_proj = EmbodimentLinear([hidden_size] * bodies, config.action_dims)
        self.type_embeddings = nn.ParameterDict(
            {kind: nn.Parameter(torch.empty(hidden_size)) for kind in config.context_tokens}
        )
        if "latent" in config.context_tokens:
            self.latent_proj = nn.Linear(config.latent_dim, hidden_size)
            self.null_latent = nn.Parameter(torch.empty(hidden_size))
        if "soft" in config.context_tokens:
            self.soft_tokens = SoftTokens(bodies, config.num_soft_tokens, hidden_size)
        if "state" in config.context_tokens:
            self.state_proj = EmbodimentLinear(config.state_dims, [hidden_size] * bodies)
        self.time_embedding = TimeEmbedding(hidden_size)
        self.layers = nn.ModuleList(ExpertLayer(config) for _ in config.expert_layers)
        self.final_norm = nn.RMSNorm(hidden_size, eps=config.rms_norm_eps)
        self.modulation = Modulation(hidden_size, 2 * hidden_size)  # of the final norm

    def encode_context(
        self,
        embodiment_ids: Tensor,
        latent: Tensor | None = None,
        drop_latent: Tensor | None = None,
        state: Tensor | None = None,
    ) -> list[KeyValue] | None:
        """Keys and values of the context tokens, one pair a layer; None when the config has no context tokens.

        Args:
            embodiment_ids: (B,) long.
            latent: (B, z) of unit norm, or None for the learned null.
            drop_latent: (B,) bool, true where the null replaces the latent.
            state: (B, S) normalised; needed when `context_tokens` has `state`.
        """
        self.require_known(embodiment_ids)
        tokens = []
        for kind in self.config.context_tokens:
            token = getattr(self, f"_{kind}_tokens")(
                embodiment_ids, latent=latent, drop_latent=drop_latent, state=state
            )
            tokens.append(token + self.type_embeddings[kind])
        if not tokens:
            return None
        hidden = torch.cat(tokens, dim=1)
        cache = []
        for layer in self.layers:
            hidden, keys_values = layer(hidden)
            cache.append(keys_values)
        return cache

    def require_known(self, embodiment_ids: Tensor) -> None:
        """Raises ValueError on an embodiment id that the checkpoint does not have."""
        names = self.config.embodiments
        if embodiment_ids.numel() and not 0 <= int(embodiment_ids.min()) <= int(embodiment_ids.max()) < len(names):
            raise ValueError(
                f"embodiment_ids {embodiment_ids.unique().tolist()} are not all among this checkpoint's "
                f"{dict(enumerate(names))}"
            )

    def forward(
        self,
        noisy_actions: Tensor,
        timestep: Tensor,
        embodiment_ids: Tensor,
        context: list[KeyValue] | None,
        action_mask: Tensor | None = None,
        clean: Tensor | None = None,
    ) -> Tensor:
        """Velocity (B, H, D) of `noisy_actions` (B, H, D) at `timestep` (B,) or (B, H).

        `clean` (B, H) bool: steps that are at tau = 0, whatever `timestep` says.
        `action_mask` (B, H, D) bool: entries that are false are neither read nor attended to.
        """
        mask = None
        if action_mask is not None:
            noisy_actions = noisy_actions.masked_fill(~action_mask, 0)
            steps = action_mask.any(dim=-1)
            ahead = 0 if context is None else context[0][0].shape[2]
            mask = nn.functional.pad(steps, (ahead, 0), value=True)[:, None, None, :]
        weight = self.modulation.weight
        hidden = self.action_in_proj(noisy_actions.to(weight.dtype), embodiment_ids)
        timestep = timestep.reshape(len(timestep), -1)
        if clean is not None and timestep.shape[1] > 1:
            timestep, clean = timestep.masked_fill(clean, 0.0), None
        elif clean is not None:
            timestep = torch.cat([timestep, torch.zeros_like(timestep)], dim=1)
        time = nn.functional.silu(self.time_embedding(timestep))
        positions = torch.arange(hidden.shape[1], device=hidden.device)
        rotary = rotary_embedding(positions, self.config.head_dim, self.config.rope_theta)
        for index, layer in enumerate(self.layers):
            hidden, _ = layer(hidden, time, None if context is None else context[index], mask, rotary, clean)
        scale, shift = self.modulation(time, clean).chunk(2, dim=-1)
        hidden = self.final_norm(hidden) * (1 + scale) + shift
        return self.action_out_proj(hidden, embodiment_ids)

    def _latent_tokens(
        self, embodiment_ids: Tensor, latent: Tensor | None, drop_latent: Tensor | None, **_: Any
    ) -> Tensor:
        null = self.null_latent.expand(len(embodiment_ids), -1)
        if latent is None:
            return null[:, None]
        # a unit vector's entries shrink with its width; the projection should not have to know
        token = self.latent_proj(latent.to(null.dtype) * self.config.latent_dim**0.5)
        if drop_latent is not None:
            token = torch.where(drop_latent[:, None], null, token)
        return token[:, None]

    def _soft_tokens(self, embodiment_ids: Tensor, **_: Any) -> Tensor:
        return self.soft_tokens(embodiment_ids)

    def _state_tokens(self, embodiment_ids: Tensor, state: Tensor | None, **_: Any) -> Tensor:
        if state is None:
            raise ValueError("this expert's context_tokens has 'state': pass state=(B, S)")
        return self.state_proj(state[:, None].to(self.modulation.weight.dtype), embodiment_ids)


__all__ = ["ActionExpert"]
