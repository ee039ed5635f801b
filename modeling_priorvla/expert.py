"""The action expert: one network on every rung and in every host.

A sequence is context tokens and then H action tokens. Context tokens see each other and neither actions nor time, and
so does what a host sees and hears: their keys and values are computed once a chunk. Action tokens see everything that
their layer's kind is given. Flow time acts on action tokens alone, token by token, by scale, shift and a gate that is
zero at birth.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..configuration.configuration_expert import ExpertConfig
from .expert_layer import ExpertLayer, LayerPrefix, Modulation
from .layers import EmbodimentLinear, SoftTokens, rotary_embedding

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


class ActionExpert(nn.Module):
    """Velocity of a noisy chunk, given what context tokens say and layers see. See `ExpertConfig` for its shape.

    `layers` are made by the model, because they are what differs between hosts (`hosts.host_layers`); the default is an
    action prior's.
    """

    def __init__(self, config: ExpertConfig, layers: list[ExpertLayer] | None = None) -> None:
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
        self.layers = nn.ModuleList(layers or [ExpertLayer(config) for _ in config.expert_layers])
        self.final_norm = nn.RMSNorm(hidden_size, eps=config.rms_norm_eps)
        self.modulation = Modulation(hidden_size, 2 * hidden_size)  # of the final norm

    def encode_context(
        self,
        embodiment_ids: Tensor,
        latent: Tensor | None = None,
        drop_latent: Tensor | None = None,
        state: Tensor | None = None,
        sight: Any = None,
    ) -> list[LayerPrefix]:
        """What the action tokens of every layer see beside each other: computed once a chunk.

        Args:
            embodiment_ids: (B,) long.
            latent: (B, z) of unit norm, or None for the learned null.
            drop_latent: (B,) bool, true where the null replaces the latent.
            state: (B, S) normalised; needed when `context_tokens` has `state`.
            sight: `hosts.Sight`, needed by layers that see.
        """
        self.require_known(embodiment_ids)
        tokens = []
        for kind in self.config.context_tokens:
            token = getattr(self, f"_{kind}_tokens")(
                embodiment_ids, latent=latent, drop_latent=drop_latent, state=state
            )
            tokens.append(token + self.type_embeddings[kind])
        hidden = torch.cat(tokens, dim=1) if tokens else None
        prefixes = []
        for layer in self.layers:
            hidden, sight, prefix = layer(hidden, None, sight, layer is self.layers[-1])
            prefixes.append(prefix)
        return prefixes

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
        context: list[LayerPrefix],
        action_mask: Tensor | None = None,
        clean: Tensor | None = None,
        draws: int = 1,
    ) -> Tensor:
        """Velocity (B, H, D) of `noisy_actions` (B, H, D) at `timestep` (B,) or (B, H).

        `context`: from `encode_context`.
        `clean` (B, H) bool: steps that are at tau = 0, whatever `timestep` says.
        `action_mask` (B, H, D) bool: entries that are false are neither read nor attended to.
        `draws`: H is of so many chunks, one behind the other, which do not see each other; `timestep` is (B, draws).
        """
        mask = None
        ahead = 0 if context[0].context is None else context[0].context[0].shape[2]
        if action_mask is not None:
            noisy_actions = noisy_actions.masked_fill(~action_mask, 0)
            steps = action_mask.any(dim=-1)
            mask = nn.functional.pad(steps, (ahead, 0), value=True)[:, None, None, :]
        if draws > 1:
            own = _draw_of(noisy_actions.shape[1], draws, noisy_actions.device)
            alone = nn.functional.pad(own[:, None] == own, (ahead, 0), value=True)[None, None]
            mask = alone if mask is None else mask & alone
        hidden = self.action_in_proj(noisy_actions.to(self.modulation.weight.dtype), embodiment_ids)
        hidden = self.denoise(hidden, timestep, context, mask, clean, draws)
        return self.action_out_proj(hidden, embodiment_ids)

    def denoise(
        self,
        hidden: Tensor,
        timestep: Tensor,
        context: list[LayerPrefix],
        mask: Tensor | None,
        clean: Tensor | None,
        draws: int = 1,
    ) -> Tensor:
        """Action tokens (B, H, d) through time, layers and final norm: what is the same for every body.

        It has no branch that depends on a tensor's values, so that it is one graph to torch.compile. `mask` (B or 1, 1,
        1 or H, T + H) is over context and action tokens, the others as of `forward`.
        """
        times = timestep.reshape(len(timestep), -1)
        which = None  # of a window's times a token takes; None where there is one for all, or one for each
        if draws > 1:
            which = _draw_of(hidden.shape[1], draws, hidden.device).expand(len(hidden), -1)
        elif clean is not None and times.shape[1] == 1:
            which = torch.zeros_like(clean, dtype=torch.long)
        if clean is not None and which is None:
            times = times.masked_fill(clean, 0.0)
        elif clean is not None and which is not None:
            which = which.masked_fill(clean, times.shape[1])
            times = nn.functional.pad(times, (0, 1))
        time = nn.functional.silu(self.time_embedding(times))
        positions = torch.arange(hidden.shape[1] // draws, device=hidden.device).repeat(draws)
        rotary = rotary_embedding(positions, self.config.head_dim, self.config.rope_theta)
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, time, context[index], mask, rotary, which)
        scale, shift = self.modulation(time, which).chunk(2, dim=-1)
        return self.final_norm(hidden) * (1 + scale) + shift

    def __getstate__(self) -> dict[str, Any]:
        """A copy is not compiled: a compiled `denoise` reads the weights of this very expert."""
        return {name: value for name, value in super().__getstate__().items() if name != "denoise"}

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


def _draw_of(tokens: int, draws: int, device: torch.device) -> Tensor:
    """Which of the `draws` each of `tokens` is of, (tokens,) long."""
    return torch.arange(tokens, device=device) // (tokens // draws)


__all__ = ["ActionExpert"]
