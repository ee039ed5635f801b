"""One layer of the action expert, as the action prior has it: it knows motion and sees nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from ..configuration.configuration_expert import ExpertConfig
from .layers import Attention, GatedMLP, KeyValue, Rotary


class LayerPrefix(NamedTuple):
    """What a layer's action tokens see beside each other; without actions and time, so it is computed once a chunk.

    context: keys and values of the context tokens. memory: of what the host sees and hears, (B, kv_heads, M,
    head_dim) each, and memory_mask (B, 1, 1, M) bool, true where it may be seen.
    """

    context: KeyValue | None = None
    memory: KeyValue | None = None
    memory_mask: Tensor | None = None


class Modulation(nn.Linear):
    """Scales, shifts and gates from the time embedding; all zero at birth."""

    def forward(self, time: Tensor, which: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """`time` (B, 1 or H, d) -> (B, 1 or H, out).

        With `which` (B, H) long, `time` is (B, R, d), and each step takes one of a window's R times: one product for
        each of these instead of one a step.
        """
        modulation = super().forward(time)
        if which is None:
            return modulation
        first = torch.arange(0, modulation.shape[1] * len(which), modulation.shape[1], device=which.device)
        return nn.functional.embedding(first[:, None] + which, modulation.flatten(0, 1))  # 5 times faster than `where`


class ExpertLayer(GradientCheckpointingLayer):
    """Pre-RMSNorm self-attention and gated MLP; action tokens are modulated by time, context tokens are not.

    `forward` is both of its uses, because that is where FSDP has the weights together: without `time` it prepares the
    layer's prefix and advances the context tokens, with `time` it advances action tokens.
    """

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

    def forward(self, tokens: Tensor | None, time: Tensor | None = None, *arguments: Any) -> Any:
        """`prepare(tokens, ...)` without `time`, `denoise(tokens, time, ...)` with it."""
        if time is None:
            return self.prepare(tokens, *arguments)
        assert tokens is not None
        return self.denoise(tokens, time, *arguments)

    def prepare(self, context: Tensor | None, sight: Any = None, last: bool = False) -> tuple[Any, Any, LayerPrefix]:
        """Context tokens (B, T, d) one layer on, what the host carries one layer on, and this layer's prefix.

        Behind the `last` layer nobody reads the tokens any more: they come back as they are.
        """
        if context is None:
            return None, sight, LayerPrefix()
        normed = self.input_norm(context)
        own = self.self_attn.keys_values(normed)
        if not last:
            context = self.context_mlp(self.context_attention(context, self.self_attn(normed, own)))
        return context, sight, LayerPrefix(own)

    def denoise(
        self,
        tokens: Tensor,
        time: Tensor,
        prefix: LayerPrefix,
        mask: Tensor | None,
        rotary: Rotary,
        which: Tensor | None,
    ) -> Tensor:
        """Action tokens (B, H, d) one layer on. `time`, `which`: see `Modulation`; `mask` (B or 1, 1, 1 or H, T + H)
        over context and action tokens."""
        scale_a, shift_a, gate_a, scale_m, shift_m, gate_m = self.modulation(time, which).chunk(6, dim=-1)
        normed = self.input_norm(tokens) * (1 + scale_a) + shift_a
        seen = joined(prefix.context, self.self_attn.keys_values(normed, rotary))
        tokens = tokens + gate_a * self.attend(normed, seen, prefix, mask, rotary)
        tokens = self.look(tokens, prefix)
        normed = self.mlp_norm(tokens) * (1 + scale_m) + shift_m
        return tokens + gate_m * self.mlp(normed)

    # --- what a host changes ------------------------------------------------------------------------------------------

    def attend(
        self, normed: Tensor, seen: KeyValue, prefix: LayerPrefix, mask: Tensor | None, rotary: Rotary
    ) -> Tensor:
        """Self-attention of action tokens over `seen`, the context's and their own keys and values."""
        return self.self_attn(normed, seen, mask, rotary)

    def look(self, tokens: Tensor, prefix: LayerPrefix) -> Tensor:
        """Action tokens after a look at the memory; here nothing is seen."""
        return tokens

    def context_attention(self, context: Tensor, branch: Tensor) -> Tensor:
        """Context tokens with the attention branch."""
        return context + branch

    def context_mlp(self, context: Tensor) -> Tensor:
        """Context tokens with the MLP branch."""
        return context + self.mlp(self.mlp_norm(context))


def joined(ahead: KeyValue | None, own: KeyValue) -> KeyValue:
    """Keys and values of two groups of tokens, one behind the other."""
    if ahead is None:
        return own
    return torch.cat([ahead[0], own[0]], dim=2), torch.cat([ahead[1], own[1]], dim=2)


__all__ = ["ExpertLayer", "LayerPrefix", "Modulation", "joined"]
