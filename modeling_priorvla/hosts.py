"""How the expert's layers see a backbone: the whole difference between the hosts `cross`, `joint` and `gated`.

Each takes the action prior's layer as it is and adds a branch, which starts without effect where the expert has a
prior's weights, so that it is that prior at first. What is seen and heard knows neither time nor actions, and is
prepared once a chunk. Layers of kind `vision` are passed vision tokens alone: the instruction is not masked there, it
does not exist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..configuration.configuration_expert import ExpertConfig
from ..configuration.configuration_priorvla import PriorVLAConfig
from .backbone import LanguageFeatures, VisionFeatures
from .expert_layer import ExpertLayer, LayerPrefix, joined
from .image_places import placed, taken_in
from .layers import Attention, EmbodimentLinear, KeyValue, Rotary


class Gate(nn.Module):
    """How much of a branch enters, by a learned weight w; see `PriorVLAConfig.gate` for the forms.

    `born` is w at the start in the form `zero`; the others start at sigmoid(0) = 0.5.
    """

    def __init__(self, form: str, size: int, born: float) -> None:
        super().__init__()
        self.form, self.born = form, born if form == "zero" else 0.0
        self.weight = nn.Parameter(torch.empty(1 if form == "additive" else size))

    def amount(self) -> Tensor:
        """(1 or d,)"""
        return self.weight if self.form == "zero" else self.weight.sigmoid()

    def forward(self, base: Tensor, branch: Tensor) -> Tensor:
        """`base` (B, T, d) with a residual `branch`, in the dtype of `base`; mixed with it in the form `convex`."""
        return self.blend(base, branch) if self.form == "convex" else base + self._in(base) * branch.to(base.dtype)

    def blend(self, base: Tensor, other: Tensor) -> Tensor:
        """From `base` (w or sigmoid(w) = 0) to `other` (= 1), both (B, T, d)."""
        return base + self._in(base) * (other.to(base.dtype) - base)

    def _in(self, base: Tensor) -> Tensor:
        return self.amount().to(base.dtype)


@dataclass
class Sight:
    """What is seen, felt and heard, as tokens of the expert's width d.

    vision, words: backbone layer -> (B, N, d) and (B, L, d); body (B, E, d): the state, and the past if there is one.
    Masks bool, true where real. stream (B, N + E, d), heard (B, L, d): how far `gated` has brought them.
    """

    vision: dict[int, Tensor]
    vision_mask: Tensor
    body: Tensor
    body_mask: Tensor
    words: dict[int, Tensor]
    words_mask: Tensor | None = None
    stream: Tensor | None = None
    heard: Tensor | None = None

    @property
    def seen_mask(self) -> Tensor:
        """(B, N + E), of vision and body tokens."""
        return torch.cat([self.vision_mask, self.body_mask], dim=1)

    def tokens(self, tap: int, with_words: bool) -> tuple[Tensor, Tensor]:
        """Tokens (B, M, d) of a backbone layer and their mask (B, 1, 1, M); words only where they are asked for."""
        parts, masks = [self.vision[tap], self.body], [self.seen_mask]
        if with_words:
            assert self.words_mask is not None
            parts.append(self.words[tap])
            masks.append(self.words_mask)
        return torch.cat(parts, dim=1), torch.cat(masks, dim=1)[:, None, None, :]

    def repeat(self, with_history: list[bool]) -> Sight:
        """As many copies as `with_history` is long, row after row; where it is false, the past (last in `body`) is not
        seen."""
        copies = len(with_history)
        if copies == 1:
            return self
        masks = [self.body_mask.clone() for _ in with_history]
        for mask, past in zip(masks, with_history, strict=True):
            mask[:, 1:] &= past
        return replace(
            self,
            vision={tap: tokens.repeat(copies, 1, 1) for tap, tokens in self.vision.items()},
            vision_mask=self.vision_mask.repeat(copies, 1),
            body=self.body.repeat(copies, 1, 1),
            body_mask=torch.cat(masks),
            words={tap: tokens.repeat(copies, 1, 1) for tap, tokens in self.words.items()},
            words_mask=None if self.words_mask is None else self.words_mask.repeat(copies, 1),
        )


class HostMemory(nn.Module):
    """Backbone features, state and history in, a `Sight` out: one linear map and norm a tapped layer."""

    def __init__(self, config: PriorVLAConfig) -> None:
        super().__init__()
        expert = config.expert
        size, eps, bodies = expert.hidden_size, expert.rms_norm_eps, len(expert.embodiments)
        seen = sorted({tap for _, tap in _layout(expert)})
        heard = sorted({tap for kind, tap in _layout(expert) if kind == "vision_language"})
        self.vision_proj = nn.ModuleDict({str(tap): nn.Linear(config.vision_hidden_size, size) for tap in seen})
        self.vision_norm = nn.ModuleDict({str(tap): nn.RMSNorm(size, eps=eps) for tap in seen})
        self.camera_embeddings = nn.Parameter(torch.empty(config.num_cameras, size))
        self.grid, self.normalizes = config.image_grid, config.normalize_features
        self.words_proj = nn.ModuleDict({str(tap): nn.Linear(config.text_hidden_size, size) for tap in heard})
        self.words_norm = nn.ModuleDict({str(tap): nn.RMSNorm(size, eps=eps) for tap in heard})
        self.state_proj = EmbodimentLinear(expert.state_dims, [size] * bodies)
        if config.use_history and not config.predicts_latent:
            self.history_proj = nn.Linear(expert.latent_dim, size)

    def forward(
        self,
        vision: VisionFeatures,
        language: LanguageFeatures | None,
        state: Tensor,
        embodiment_ids: Tensor,
        history: Tensor | None = None,
        has_history: Tensor | None = None,
    ) -> Sight:
        """`state` (B, S) normalised, `history` (B, z) from the trajectory encoder, `has_history` (B,) bool.

        Raises ValueError when the features have more cameras than `num_cameras`, or other tokens than `image_grid`.
        """
        dtype = self.camera_embeddings.dtype
        cameras = self.camera_embeddings[: require_cameras(vision, len(self.camera_embeddings))]
        seen = {}
        for tap, project in self.vision_proj.items():
            tokens = project(taken_in(vision.tap(int(tap)), self.normalizes, dtype)).unflatten(1, (len(cameras), -1))
            seen[int(tap)] = self.vision_norm[tap](placed(tokens, cameras, self.grid))
        body = [self.state_proj(state[:, None].to(dtype), embodiment_ids)]
        if history is not None:
            body.append(self.history_proj(history.to(dtype) * history.shape[-1] ** 0.5)[:, None])
        tokens = torch.cat(body, dim=1)
        body_mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if has_history is not None:
            body_mask[:, 1:] &= has_history[:, None]
        words: dict[int, Tensor] = {}
        if self.words_proj:
            assert language is not None
            words = {
                int(tap): self.words_norm[tap](project(taken_in(language.tap(int(tap)), self.normalizes, dtype)))
                for tap, project in self.words_proj.items()
            }
        return Sight(seen, vision.mask, tokens, body_mask, words, language.mask if words and language else None)


class SeeingLayer(ExpertLayer):
    """An expert layer that sees the backbone's layer `tap`, and reads the instruction there if `reads_language`.

    Its context tokens have gates too, so that a layer that is inserted between others can begin by leaving them alone.
    """

    def __init__(self, config: ExpertConfig, tap: int, reads_language: bool, gate: str, last: bool) -> None:
        super().__init__(config)
        self.tap, self.reads_language = tap, reads_language
        if config.context_tokens and not last:
            self.context_attn_gate = Gate("zero", config.hidden_size, born=1.0)
            self.context_mlp_gate = Gate("zero", config.hidden_size, born=1.0)

    def prepare(self, context: Tensor | None, sight: Any = None, last: bool = False) -> tuple[Any, Any, LayerPrefix]:
        context, _, prefix = super().prepare(context, None, last)
        memory, mask, sight = self.remember(sight, last)
        return context, sight, LayerPrefix(prefix.context, memory, mask)

    def remember(self, sight: Sight, last: bool) -> tuple[KeyValue, Tensor, Sight]:
        """Keys and values of what this layer sees, their mask (B, 1, 1, M), and the sight one layer on."""
        raise NotImplementedError

    def context_attention(self, context: Tensor, branch: Tensor) -> Tensor:
        return self.context_attn_gate(context, branch)

    def context_mlp(self, context: Tensor) -> Tensor:
        return self.context_mlp_gate(context, self.mlp(self.mlp_norm(context)))

    @torch.no_grad()
    def start_blind(self) -> None:
        """Starts as the prior's layer whose weights it has, as if it saw nothing (gates of the form `zero`)."""

    @torch.no_grad()
    def start_absent(self) -> None:
        """Starts as if it were not there (gates of the form `zero`), whatever weights it has."""
        for part in (self.modulation.weight, self.modulation.bias):
            _, _, attn_gate, _, _, mlp_gate = part.chunk(6)
            attn_gate.zero_()
            mlp_gate.zero_()
        for name in ("context_attn_gate", "context_mlp_gate"):
            if hasattr(self, name):
                getattr(self, name).weight.zero_()


class CrossLayer(SeeingLayer):
    """GR00T-style: between self-attention and MLP, action tokens attend to the last backbone layer that is used."""

    def __init__(self, config: ExpertConfig, tap: int, reads_language: bool, gate: str, last: bool) -> None:
        super().__init__(config, tap, reads_language, gate, last)
        self.cross_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.cross_attn = Attention(
            config,
            config.hidden_size,
            config.num_attention_heads,
            config.head_dim,
            num_key_value_heads=config.num_key_value_heads,
        )
        self.cross_gate = Gate(gate, config.hidden_size, born=1.0)

    def remember(self, sight: Sight, last: bool) -> tuple[KeyValue, Tensor, Sight]:
        tokens, mask = sight.tokens(self.tap, self.reads_language)
        return self.cross_attn.keys_values(tokens), mask, sight

    @torch.no_grad()
    def start_blind(self) -> None:
        self.cross_gate.weight.zero_()

    @torch.no_grad()
    def start_absent(self) -> None:
        super().start_absent()
        self.cross_gate.weight.zero_()

    def look(self, tokens: Tensor, prefix: LayerPrefix) -> Tensor:
        assert prefix.memory is not None
        return self.cross_gate(tokens, self.cross_attn(self.cross_norm(tokens), prefix.memory, prefix.memory_mask))


class AttendingLayer(SeeingLayer):
    """Action tokens attend to the memory and to themselves at once, in one softmax.

    The gate leads from attention without the memory, the prior's, to attention with it (our choice: keys cannot be
    added to a softmax without effect; the result can be blended in without any).
    """

    def __init__(self, config: ExpertConfig, tap: int, reads_language: bool, gate: str, last: bool) -> None:
        super().__init__(config, tap, reads_language, gate, last)
        self.memory_gate = Gate(gate, config.hidden_size, born=1.0)

    def attend(
        self, normed: Tensor, seen: KeyValue, prefix: LayerPrefix, mask: Tensor | None, rotary: Rotary
    ) -> Tensor:
        assert prefix.memory_mask is not None
        query = self.self_attn.queries(normed, rotary)
        alone = self.self_attn.attend(query, seen, mask)
        memory_mask = prefix.memory_mask
        if mask is None:
            mask = memory_mask.new_ones(1, 1, 1, seen[0].shape[2])
        mask = mask.expand(len(memory_mask), -1, -1, -1)
        together = torch.cat([memory_mask.expand(-1, -1, mask.shape[2], -1), mask], dim=-1)
        return self.memory_gate.blend(alone, self.self_attn.attend(query, joined(prefix.memory, seen), together))

    @torch.no_grad()
    def start_blind(self) -> None:
        self.memory_gate.weight.zero_()


class JointLayer(AttendingLayer):
    """pi-style: keys and values are projected from the backbone's layer, so that one prior fits every backbone."""

    def __init__(self, config: ExpertConfig, tap: int, reads_language: bool, gate: str, last: bool) -> None:
        super().__init__(config, tap, reads_language, gate, last)
        self.memory_proj = nn.Linear(config.hidden_size, 2 * config.num_key_value_heads * config.head_dim, bias=False)

    def remember(self, sight: Sight, last: bool) -> tuple[KeyValue, Tensor, Sight]:
        tokens, mask = sight.tokens(self.tap, self.reads_language)
        heads = self.memory_proj(tokens).unflatten(-1, (2, -1, self.self_attn.head_dim))
        keys, values = heads.permute(2, 0, 3, 1, 4)
        return (keys, values), mask, sight


class GatedLayer(AttendingLayer):
    """Paper B: a stream of vision (and language) tokens runs through the expert's own blocks, beside the actions.

    Every layer takes its tap into the stream through a gate. Vision tokens never see words, words see both (our
    choice): what a language-blind layer finds in the stream is a function of images and body alone. What the layer
    passes on is gated once more in the form `zero`, so that an inserted layer can begin without effect.
    """

    def __init__(self, config: ExpertConfig, tap: int, reads_language: bool, gate: str, last: bool) -> None:
        super().__init__(config, tap, reads_language, gate, last)
        self.vision_gate = Gate(gate, config.hidden_size, born=1.0)
        if reads_language:
            self.words_gate = Gate(gate, config.hidden_size, born=1.0)
        if gate == "zero" and not last:
            self.stream_gate = Gate(gate, config.hidden_size, born=1.0)

    def remember(self, sight: Sight, last: bool) -> tuple[KeyValue, Tensor, Sight]:
        vision, mask = sight.vision[self.tap], sight.seen_mask[:, None, None, :]
        count = vision.shape[1]
        stream = sight.stream
        if stream is None:
            stream = torch.cat([torch.zeros_like(vision), sight.body], dim=1)
        taken = torch.cat([self.vision_gate(stream[:, :count], vision), stream[:, count:]], dim=1)
        memory, advanced = self._advance(taken, None, mask, last)
        stream = self.stream_gate.blend(stream, advanced) if hasattr(self, "stream_gate") else advanced
        heard = sight.heard
        if self.reads_language:
            assert sight.words_mask is not None
            words = sight.words[self.tap]
            taken = self.words_gate(torch.zeros_like(words) if heard is None else heard, words)
            mask = torch.cat([mask, sight.words_mask[:, None, None, :]], dim=-1)
            own, heard = self._advance(taken, memory, mask, last)
            memory = joined(memory, own)
        return memory, mask, replace(sight, stream=stream, heard=heard)

    def _advance(self, tokens: Tensor, ahead: KeyValue | None, mask: Tensor, last: bool) -> tuple[KeyValue, Tensor]:
        """Keys and values of `tokens`, and the tokens one layer on, who see `ahead` and each other."""
        normed = self.input_norm(tokens)
        own = self.self_attn.keys_values(normed)
        if not last:
            tokens = tokens + self.self_attn(normed, joined(ahead, own), mask)
            tokens = tokens + self.mlp(self.mlp_norm(tokens))
        return own, tokens

    @torch.no_grad()
    def start_absent(self) -> None:
        super().start_absent()
        if hasattr(self, "stream_gate"):
            self.stream_gate.weight.zero_()


HOSTS: dict[str, type[SeeingLayer]] = {"cross": CrossLayer, "joint": JointLayer, "gated": GatedLayer}


def host_layers(config: PriorVLAConfig) -> list[ExpertLayer]:
    """The expert's layers as `config.fusion` wants them."""
    expert = config.expert
    if config.fusion == "latent":
        return [ExpertLayer(expert) for _ in expert.expert_layers]
    last = len(expert.expert_layers) - 1
    return [
        HOSTS[config.fusion](expert, tap, kind == "vision_language", config.gate, index == last)
        for index, (kind, tap) in enumerate(_layout(expert))
    ]


def require_cameras(vision: VisionFeatures, slots: int) -> int:
    """How many cameras the features have. Raises ValueError when those are more than the model has `slots` for."""
    if vision.num_cameras > slots:
        raise ValueError(
            f"the batch has {vision.num_cameras} cameras, this model has {slots} camera slots (config.num_cameras)"
        )
    return vision.num_cameras


def _layout(expert: ExpertConfig) -> list[tuple[str, int]]:
    """Kind and tap of every layer that sees."""
    assert expert.tap_layers is not None
    layers = zip(expert.expert_layers, expert.tap_layers, strict=True)
    return [(kind, cast(int, tap)) for kind, tap in layers if tap is not None]  # names are numbers by now


__all__ = ["HOSTS", "Gate", "HostMemory", "SeeingLayer", "Sight", "host_layers", "require_cameras"]
