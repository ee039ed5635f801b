"""Paper A's query token over a dual encoder: a small transformer that answers what it sees and hears with one latent.

Order of the tokens: `[text] [p_k] [state] [z_hist] [gatherers] [q]` (paper A puts p_k first; then nothing before it
could be cached). They attend to each other and, by cross-attention, to the vision tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..configuration.configuration_priorvla import PriorVLAConfig
from .backbone import Backbone, LanguageFeatures, VisionFeatures
from .hosts import require_cameras
from .image_places import placed, taken_in
from .layers import EmbodimentLinear, SoftTokens, TransformerLayer
from .trajectory_encoder import unit_norm


class FusionTransformer(nn.Module):
    """Backbone features, state and history in; z' (B, z), unit L2 norm, out at the query token."""

    def __init__(self, config: PriorVLAConfig) -> None:
        super().__init__()
        fusion, expert = config.fusion_transformer, config.expert
        self.config, self.tap = fusion, config.backbone_layers
        self.grid, self.normalizes = config.image_grid, config.normalize_features
        hidden_size, bodies = fusion.hidden_size, len(expert.embodiments)
        self.vision_proj = nn.Linear(config.vision_hidden_size, hidden_size)
        self.vision_norm = nn.RMSNorm(hidden_size, eps=expert.rms_norm_eps)
        self.camera_embeddings = nn.Parameter(torch.empty(config.num_cameras, hidden_size))
        self.text_proj = nn.Linear(config.text_hidden_size, hidden_size)
        if fusion.num_soft_tokens:
            self.soft_tokens = SoftTokens(bodies, fusion.num_soft_tokens, hidden_size)
        self.state_proj = EmbodimentLinear(expert.state_dims, [hidden_size] * bodies)
        if config.use_history:
            self.history_proj = nn.Linear(expert.latent_dim, hidden_size)
        self.gatherers = nn.Parameter(torch.empty(fusion.num_latents, hidden_size))
        self.query = nn.Parameter(torch.empty(hidden_size))
        self.layers = nn.ModuleList(
            TransformerLayer(
                fusion,
                hidden_size,
                fusion.intermediate_size,
                fusion.num_attention_heads,
                hidden_size // fusion.num_attention_heads,
                cross=True,
                eps=expert.rms_norm_eps,
            )
            for _ in range(fusion.num_hidden_layers)
        )
        self.final_norm = nn.RMSNorm(hidden_size, eps=expert.rms_norm_eps)
        self.query_out_proj = nn.Linear(hidden_size, expert.latent_dim)

    def forward(
        self,
        vision: VisionFeatures,
        language: LanguageFeatures,
        state: Tensor,
        embodiment_ids: Tensor,
        history: Tensor | None = None,
        has_history: Tensor | None = None,
    ) -> Tensor:
        """`state` (B, S) normalised; `history` (B, z) from the trajectory encoder, left out when None.

        `has_history` (B,) bool is false for rows whose past is still empty. Raises ValueError when the features have
        more cameras than `num_cameras`, or other tokens than `image_grid`.
        """
        dtype = self.query.dtype
        memory, memory_mask = self._memory(vision, dtype)
        tokens = [self.text_proj(taken_in(language.tap(self.tap), self.normalizes, dtype))]
        seen = [language.mask]
        if self.config.num_soft_tokens:
            tokens.append(self.soft_tokens(embodiment_ids))
        tokens.append(self.state_proj(state[:, None].to(dtype), embodiment_ids))
        seen.append(state.new_ones(len(state), sum(part.shape[1] for part in tokens[1:]), dtype=torch.bool))
        if history is not None:
            tokens.append(self.history_proj(history.to(dtype) * history.shape[-1] ** 0.5)[:, None])
            seen.append(seen[-1][:, :1] if has_history is None else has_history[:, None])
        own = torch.cat([self.gatherers, self.query[None]]).expand(len(state), -1, -1)
        tokens.append(own)
        seen.append(torch.ones_like(own[..., 0], dtype=torch.bool))
        hidden = torch.cat(tokens, dim=1)
        mask = torch.cat(seen, dim=1)[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, mask, memory=memory, memory_mask=memory_mask)
        return unit_norm(self.query_out_proj(self.final_norm(hidden[:, -1])))

    def _memory(self, vision: VisionFeatures, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Vision tokens (B, C P, d) of the last layer that is used, with camera and place; mask (B, 1, 1, C P)."""
        cameras = self.camera_embeddings[: require_cameras(vision, len(self.camera_embeddings))]
        projected = self.vision_proj(taken_in(vision.tap(self.tap), self.normalizes, dtype)).unflatten(
            1, (len(cameras), -1)
        )
        return self.vision_norm(placed(projected, cameras, self.grid)), vision.mask[:, None, None, :]


class QueryTail(nn.Module):
    """Paper A's query token in a generative backbone: `[p_k] [state] [z_hist] [q]` continue the backbone's sequence.

    Everything before them is the backbone's affair and may be kept; only these tokens are trained here.
    """

    def __init__(self, config: PriorVLAConfig) -> None:
        super().__init__()
        expert, size, self.tap = config.expert, config.text_hidden_size, config.backbone_layers
        bodies = len(expert.embodiments)
        self.soft_tokens = SoftTokens(bodies, max(1, config.fusion_transformer.num_soft_tokens), size)
        self.state_proj = EmbodimentLinear(expert.state_dims, [size] * bodies)
        if config.use_history:
            self.history_proj = nn.Linear(expert.latent_dim, size)
            self.no_history = nn.Parameter(torch.empty(size))
        self.query = nn.Parameter(torch.empty(size))
        self.final_norm = nn.RMSNorm(size, eps=expert.rms_norm_eps)
        self.query_out_proj = nn.Linear(size, expert.latent_dim)

    def forward(
        self,
        backbone: Backbone,
        language: LanguageFeatures,
        state: Tensor,
        embodiment_ids: Tensor,
        history: Tensor | None = None,
        has_history: Tensor | None = None,
    ) -> Tensor:
        """z' (B, z), unit L2 norm; arguments as `FusionTransformer.forward`."""
        dtype = self.query.dtype
        tokens = [self.soft_tokens(embodiment_ids), self.state_proj(state[:, None].to(dtype), embodiment_ids)]
        if history is not None:
            past = self.history_proj(history.to(dtype) * history.shape[-1] ** 0.5)
            if has_history is not None:
                past = torch.where(has_history[:, None], past, self.no_history)
            tokens.append(past[:, None])
        tokens.append(self.query.expand(len(state), 1, -1))
        hidden = backbone.encode_tail(language, torch.cat(tokens, dim=1), self.tap)
        return unit_norm(self.query_out_proj(self.final_norm(hidden[:, -1].to(dtype))))


__all__ = ["FusionTransformer", "QueryTail"]
