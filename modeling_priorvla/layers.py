"""Attention, gated MLP and per-embodiment maps: the parts that the expert, the encoder and the fusion are made of."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

KeyValue = tuple[Tensor, Tensor]
Rotary = tuple[Tensor, Tensor]


def rotary_embedding(positions: Tensor, head_dim: int, theta: float) -> Rotary:
    """Cosines and sines (..., T, head_dim) of the rotary embedding at integer `positions` (..., T)."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[..., None] / theta**exponent
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotates queries or keys (B, heads, T, head_dim) by their position."""
    cos, sin = (part.to(x.dtype) for part in rotary)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def eager_attention(
    module: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Plain softmax attention; `attention_mask` is boolean, true where a key may be seen."""
    groups = module.num_key_value_groups
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2), weights


class Attention(nn.Module):
    """Multi-head attention whose keys and values are projected apart from its queries, so that they can be kept.

    `config._attn_implementation` chooses the kernel (`sdpa` or `eager`), as in every transformers model.
    """

    is_causal = False

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        *,
        num_key_value_heads: int | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.head_dim = head_dim
        self.scaling = head_dim**-0.5
        key_value_heads = num_key_value_heads or num_heads
        self.num_key_value_groups = num_heads // key_value_heads
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, key_value_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, key_value_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def keys_values(self, x: Tensor, rotary: Rotary | None = None) -> KeyValue:
        """Keys and values (B, kv_heads, T, head_dim) of `x` (B, T, d)."""
        key, value = self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        return (key if rotary is None else rotate(key, rotary)), value

    def forward(
        self, x: Tensor, keys_values: KeyValue, mask: Tensor | None = None, rotary: Rotary | None = None
    ) -> Tensor:
        """Attends from `x` (B, T, d) to keys and values; `mask` bool, broadcastable to (B, 1, T, T_kv), true = seen."""
        return self.attend(self.queries(x, rotary), keys_values, mask)

    def queries(self, x: Tensor, rotary: Rotary | None = None) -> Tensor:
        """Queries (B, heads, T, head_dim) of `x` (B, T, d)."""
        query = self._heads(self.q_proj(x))
        return query if rotary is None else rotate(query, rotary)

    def attend(self, query: Tensor, keys_values: KeyValue, mask: Tensor | None = None) -> Tensor:
        """(B, T, d) of `queries`; see `forward`."""
        attend = eager_attention
        if self.config._attn_implementation not in (None, "eager"):
            attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        if mask is not None:
            mask = mask.expand(-1, 1, query.shape[2], -1)
        output, _ = attend(self, query, *keys_values, mask, scaling=self.scaling, dropout=0.0, is_causal=False)
        return self.o_proj(output.reshape(*output.shape[:2], -1))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class GatedMLP(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class TransformerLayer(GradientCheckpointingLayer):
    """Pre-RMSNorm self-attention and gated MLP, with cross-attention between them when `cross` is asked for."""

    def __init__(
        self,
        config: PreTrainedConfig,
        hidden_size: int,
        intermediate_size: int,
        num_heads: int,
        head_dim: int,
        *,
        cross: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.input_norm = nn.RMSNorm(hidden_size, eps=eps)
        self.self_attn = Attention(config, hidden_size, num_heads, head_dim)
        if cross:
            self.cross_norm = nn.RMSNorm(hidden_size, eps=eps)
            self.cross_attn = Attention(config, hidden_size, num_heads, head_dim)
        self.mlp_norm = nn.RMSNorm(hidden_size, eps=eps)
        self.mlp = GatedMLP(hidden_size, intermediate_size)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rotary: Rotary | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, d) -> (B, T, d); `memory` (B, T_m, d) feeds the cross-attention.

        Masks (B, 1, 1, T) are true where seen.
        """
        normed = self.input_norm(x)
        x = x + self.self_attn(normed, self.self_attn.keys_values(normed, rotary), mask, rotary)
        if memory is not None:
            x = x + self.cross_attn(self.cross_norm(x), self.cross_attn.keys_values(memory), memory_mask)
        return x + self.mlp(self.mlp_norm(x))


class EmbodimentLinear(nn.Module):
    """One linear map per embodiment, each of its own width, chosen by `embodiment_ids`.

    Rows are grouped by embodiment and never share a matrix product with another body, so a robot added later changes no
    bit of an old one. Inputs (B, T, widest in) use each body's leading entries; outputs are zero beyond its own width.

    A body that is not in the batch gets no gradient, unless `every_gradient` is set: then it gets zeros, because
    processes that share out the weights (FSDP) must agree on which have a gradient.
    """

    every_gradient = False

    def __init__(self, in_dims: list[int], out_dims: list[int]) -> None:
        super().__init__()
        self.in_dims, self.out_dims = list(in_dims), list(out_dims)
        self.projections = nn.ModuleList(nn.Linear(i, o) for i, o in zip(in_dims, out_dims, strict=True))

    def add(self, in_dim: int, out_dim: int) -> nn.Linear:
        """Appends a map for one more body, with whatever weights memory holds, and returns it."""
        weight = cast(nn.Linear, self.projections[0]).weight
        projection = nn.Linear(in_dim, out_dim, device=weight.device, dtype=weight.dtype)
        self.projections.append(projection)
        self.in_dims.append(in_dim)
        self.out_dims.append(out_dim)
        return projection

    def forward(self, x: Tensor, embodiment_ids: Tensor) -> Tensor:
        if self.every_gradient or len(self.projections) == 1:
            present = list(range(len(self.projections)))
        else:
            present = embodiment_ids.unique().tolist()
        if len(present) == 1:
            output = self._project(x, present[0])
            return nn.functional.pad(output, (0, max(self.out_dims) - output.shape[-1]))
        result = x.new_zeros(*x.shape[:-1], max(self.out_dims))
        for index in present:
            rows = (embodiment_ids == index).nonzero().squeeze(-1)
            output = self._project(x[rows], index)
            result = result.to(output.dtype)  # autocast may have chosen a narrower one
            result[rows, ..., : self.out_dims[index]] = output
        return result

    def _project(self, x: Tensor, index: int) -> Tensor:
        # contiguous: on a view of wider rows a linear map takes another path, which rounds differently
        return self.projections[index](x[..., : self.in_dims[index]].contiguous())


class SoftTokens(nn.Module):
    """Learnable tokens p_k of every embodiment (paper A), one parameter a body."""

    def __init__(self, num_embodiments: int, num_tokens: int, hidden_size: int) -> None:
        super().__init__()
        self.tokens = nn.ParameterList(
            nn.Parameter(torch.empty(num_tokens, hidden_size)) for _ in range(num_embodiments)
        )

    def forward(self, embodiment_ids: Tensor) -> Tensor:
        """(B,) -> (B, num_tokens, d)."""
        return torch.stack(tuple(self.tokens))[embodiment_ids]


__all__ = ["Attention", "EmbodimentLinear", "GatedMLP", "SoftTokens", "TransformerLayer", "rotary_embedding"]
