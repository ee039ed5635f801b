"""The action expert's shape, the trajectory encoder's, and the flow that the expert is trained with."""

# No `from __future__ import annotations` here: as strings, types would not be checked by `strict`.

from collections.abc import Sequence
from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .embodiment import Embodiment
from .expert_layout import tap_of

FORMAT_VERSION = 1
EXPERT_LAYER_KINDS = ("motion", "vision", "vision_language")
CONTEXT_TOKENS = ("latent", "soft", "state")
TIME_DISTRIBUTIONS = ("beta", "uniform", "logit_normal")
SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")


@strict
class ExpertConfig(PreTrainedConfig):
    """Shape of the one network that generates actions on every rung and in every host.

    Args:
        chunk_size (`int`, defaults to 16): actions in a chunk, H.
        hidden_size (`int`, defaults to 128): width of the residual stream, d.
        intermediate_size (`int`, defaults to 384): width of the gated MLP.
        num_attention_heads (`int`, defaults to 4): query heads.
        num_key_value_heads (`int`, defaults to 4): key/value heads; divides `num_attention_heads`.
        head_dim (`int`, defaults to 32): width of a head; even, because of the rotary embedding.
        expert_layers (`list[str]`): the kind of every layer, in order: `motion` (sees context tokens and actions),
            `vision`, `vision_language`. Default: four motion layers.
        tap_layers (`list[int | None]`): per expert layer, the backbone layer that it reads; None for motion layers. A
            layer may be given by its module's name, `layers.11` for 12; numbers are what is kept.
        context_tokens (`list[str]`): what stands before the actions: `latent` (z, z' or the learned null), `soft`
            (the embodiment's soft tokens), `state` (the current proprioceptive state). An absent kind is left out.
        num_soft_tokens (`int`, defaults to 2): soft tokens p_k of an embodiment. Paper A: number unknown, our choice.
        latent_dim (`int`, defaults to 32): dimensions of z. Paper A: unknown; 32 because a latent that can copy the
            chunk makes a worse prior (our measurement).
        embodiments (`list[str]`): names, in the order of the embodiment id; repeated in `embodiments.json`.
        action_dims, state_dims (`list[int]`): per embodiment; every projection has its own width.
        rms_norm_eps (`float`, defaults to 1e-6), rope_theta (`float`, defaults to 100.0; chunks are short): as in
            Llama.
    """

    model_type = "priorvla_expert"
    base_config_key = "expert"

    chunk_size: int = 16
    hidden_size: int = 128
    intermediate_size: int = 384
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    head_dim: int = 32
    expert_layers: list[str] = field(default_factory=lambda: ["motion"] * 4)
    tap_layers: list[int | str | None] | None = None
    context_tokens: list[str] = field(default_factory=lambda: ["latent", "soft"])
    num_soft_tokens: int = 2
    latent_dim: int = 32
    embodiments: list[str] = field(default_factory=lambda: ["default"])
    action_dims: list[int] = field(default_factory=lambda: [7])
    state_dims: list[int] = field(default_factory=lambda: [7])
    rms_norm_eps: float = 1e-6
    rope_theta: float | int = 100.0

    def __post_init__(self, **kwargs: Any) -> None:
        if self.tap_layers is None:
            self.tap_layers = [None] * len(self.expert_layers)
        self.tap_layers = [None if tap is None else tap_of(tap) for tap in self.tap_layers]
        super().__post_init__(**kwargs)

    @property
    def action_dim(self) -> int:
        """D: action dims padded to the widest embodiment."""
        return max(self.action_dims)

    @property
    def state_dim(self) -> int:
        """S: state dims padded to the widest embodiment."""
        return max(self.state_dims)

    def require_embodiments(self, embodiments: Sequence[Embodiment]) -> None:
        """Raises ValueError unless these, the processor's, are the bodies that the expert is built for, in its order.

        A projection is found by id and statistics by name: were the two orders different, a robot would be driven with
        another one's weights.
        """
        theirs = [(body.name, body.model_action_dim, body.model_state_dim) for body in embodiments]
        ours = list(zip(self.embodiments, self.action_dims, self.state_dims, strict=True))
        if theirs != ours:
            raise ValueError(
                f"the config's embodiments are {ours} (name, the model's action and state dims), the processor's "
                f"(embodiments.json) are {theirs}: use the processor that was saved with the model"
            )

    def validate_architecture(self) -> None:
        """Raises ValueError with what to do instead when the fields cannot describe one expert."""
        assert self.tap_layers is not None
        for name in ("expert_layers", "embodiments"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: an expert needs at least one")
        _require_positive(self, "chunk_size", "hidden_size", "intermediate_size", "head_dim", "latent_dim")
        _require_positive(self, "num_attention_heads", "num_key_value_heads")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads={self.num_key_value_heads} must divide "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: the rotary embedding turns pairs")
        for kind in self.expert_layers:
            if kind not in EXPERT_LAYER_KINDS:
                raise ValueError(f"expert_layers has {kind!r}, use {', '.join(EXPERT_LAYER_KINDS)}")
        if len(self.tap_layers) != len(self.expert_layers):
            raise ValueError(
                f"tap_layers has {len(self.tap_layers)} entries for {len(self.expert_layers)} expert_layers"
            )
        for index, (kind, tap) in enumerate(zip(self.expert_layers, self.tap_layers, strict=True)):
            if (kind == "motion") != (tap is None):
                remedy = "a motion layer reads no backbone: use None" if kind == "motion" else "name the layer it reads"
                raise ValueError(f"tap_layers[{index}]={tap} does not fit expert_layers[{index}]={kind!r}: {remedy}")
        for token in self.context_tokens:
            if token not in CONTEXT_TOKENS:
                raise ValueError(f"context_tokens has {token!r}, use {', '.join(CONTEXT_TOKENS)}")
        if "soft" in self.context_tokens and self.num_soft_tokens < 1:
            raise ValueError("context_tokens has 'soft' but num_soft_tokens=0: leave 'soft' out, or ask for tokens")
        if len(set(self.embodiments)) != len(self.embodiments):
            raise ValueError(
                f"embodiments {self.embodiments} repeat a name: the name is how a checkpoint tells them apart"
            )
        if not len(self.embodiments) == len(self.action_dims) == len(self.state_dims):
            raise ValueError(
                f"{len(self.embodiments)} embodiments, {len(self.action_dims)} action_dims, {len(self.state_dims)} "
                "state_dims: give one of each per embodiment"
            )
        if min(self.action_dims) < 1 or min(self.state_dims) < 0:
            raise ValueError(
                f"action_dims={self.action_dims} must be positive, state_dims={self.state_dims} not negative"
            )


@strict
class EncoderConfig(PreTrainedConfig):
    """Shape of the trajectory encoder E of paper A: states and actions of a chunk in, one latent out.

    Args:
        hidden_size (`int`, defaults to 128), intermediate_size (`int`, defaults to 384), num_hidden_layers (`int`,
        defaults to 3), num_attention_heads (`int`, defaults to 4), head_dim (`int`, defaults to 32): the transformer's.
        num_soft_tokens (`int`, defaults to 2): the encoder's own soft tokens p_k.
        states (`str`, defaults to "with"): `with` interleaves states and actions; `without` is paper A's ablation
            (+3.7 against +0.8 points in its simulation).
    """

    model_type = "priorvla_trajectory_encoder"
    base_config_key = "encoder"

    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    head_dim: int = 32
    num_soft_tokens: int = 2
    states: str = "with"

    def validate_architecture(self) -> None:
        """Raises ValueError naming the field and its value."""
        _require_positive(
            self, "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"
        )
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: the rotary embedding turns pairs")
        if self.states not in ("with", "without"):
            raise ValueError(f"states={self.states!r} must be 'with' or 'without'")
        if self.num_soft_tokens < 0:
            raise ValueError(f"num_soft_tokens={self.num_soft_tokens} must not be negative")


@strict
class MotionConfig(PreTrainedConfig):
    """What an action prior and a VLA share: the expert, the trajectory encoder, and the flow between noise and action.

    Args:
        expert (`ExpertConfig`): the action expert.
        encoder (`EncoderConfig | None`): the trajectory encoder; None for a VLA that neither distils nor has history.
        time_distribution (`str`, defaults to "logit_normal"): training times tau in [0, 1] (1 = noise): `beta` (pi0's
            Beta(`time_alpha`, `time_beta`)), `uniform` or `logit_normal`. Paper A: unknown.
        time_alpha (`float`, defaults to 1.5), time_beta (`float`, defaults to 1.0): of the beta distribution.
        scheduler (`dict`): diffusers scheduler, `{"_class_name": ..., **arguments}`. Default: flow-matching Euler.
        num_inference_steps (`int`, defaults to 5): denoising steps of `sample_actions`.
        prefix_probability (`float`, defaults to 0.25): share of training windows whose first steps are shown clean, so
            that a chunk can be continued that is already being executed (real-time chunking). Our choice: three of four
            windows still teach to begin from nothing.
        max_prefix_length (`int`, defaults to half of `chunk_size`): such a prefix has 1 to so many steps.
        format_version (`int`): of the checkpoint's format.
    """

    sub_configs = {"expert": ExpertConfig, "encoder": EncoderConfig}

    expert: Any = None  # ExpertConfig, or a mapping of its fields
    encoder: Any = None  # EncoderConfig, a mapping of its fields, or None
    time_distribution: str = "logit_normal"
    time_alpha: float | int = 1.5
    time_beta: float | int = 1.0
    scheduler: dict[str, Any] = field(default_factory=lambda: {"_class_name": SCHEDULERS[0], "shift": 1.0})
    num_inference_steps: int = 5
    prefix_probability: float | int = 0.25
    max_prefix_length: int | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        if not __name__.startswith("transformers_modules."):
            kwargs.pop("auto_map", None)  # names code that is saved by a checkpoint's own copy of this module alone
        if not isinstance(self.expert, PreTrainedConfig):
            self.expert = ExpertConfig(**(self.expert or {}))
        if isinstance(self.encoder, dict):
            self.encoder = EncoderConfig(**self.encoder)
        if self.max_prefix_length is None:
            self.max_prefix_length = self.expert.chunk_size // 2
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Raises ValueError with what to do instead when the fields do not fit each other."""
        if self.format_version > FORMAT_VERSION:
            raise ValueError(f"format_version={self.format_version} is newer than {FORMAT_VERSION}: update priorvla")
        if self.time_distribution not in TIME_DISTRIBUTIONS:
            raise ValueError(f"time_distribution={self.time_distribution!r}, use {', '.join(TIME_DISTRIBUTIONS)}")
        if not (self.time_alpha > 0 and self.time_beta > 0):
            raise ValueError(f"time_alpha={self.time_alpha} and time_beta={self.time_beta} must be positive")
        if self.scheduler.get("_class_name") not in SCHEDULERS:
            raise ValueError(f"scheduler {self.scheduler.get('_class_name')!r}, use {', '.join(SCHEDULERS)}")
        if self.scheduler.get("shift", 1.0) != 1.0:
            raise ValueError(f"scheduler shift={self.scheduler['shift']}: leave it at 1.0, diffusers applies it twice")
        _require_positive(self, "num_inference_steps")
        if not 0 <= self.prefix_probability <= 1:
            raise ValueError(
                f"prefix_probability={self.prefix_probability} must be in [0, 1]; 0 turns clean prefixes off"
            )
        assert self.max_prefix_length is not None
        if not 0 <= self.max_prefix_length < self.expert.chunk_size:
            raise ValueError(
                f"max_prefix_length={self.max_prefix_length} must be in [0, {self.expert.chunk_size}): of the "
                f"chunk_size={self.expert.chunk_size} steps one at least is left to predict"
            )


def _require_positive(config: PreTrainedConfig, *names: str) -> None:
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")


__all__ = ["EncoderConfig", "ExpertConfig", "MotionConfig"]
