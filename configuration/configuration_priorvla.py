"""Rungs 2 and 3: the action expert beside a vision-language backbone."""

# No `from __future__ import annotations` here: as strings, types would not be checked by `strict`.

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .backbone_reference import BACKBONE_KEYS, require_backbone_reference
from .configuration_expert import ExpertConfig, MotionConfig
from .expert_layout import seeing_layout

SEEING_FUSIONS = ("cross", "joint", "gated")
FUSIONS = ("latent", *SEEING_FUSIONS)
GATES = ("zero", "additive", "convex")
TAILS = ("transformer", "backbone")
BACKBONE_TRAININGS = ("frozen", "lora", "full")


@strict
class FusionConfig(PreTrainedConfig):
    """Shape of the small transformer that reads a dual encoder's features and answers with the query token's z'.

    Args:
        hidden_size (`int`, defaults to 128), intermediate_size (`int`, defaults to 384), num_hidden_layers (`int`,
        defaults to 3), num_attention_heads (`int`, defaults to 4): the transformer's.
        num_latents (`int`, defaults to 8): extra tokens that gather vision beside the query.
        num_soft_tokens (`int`, defaults to 2): soft tokens p_k of the embodiment, here after the text.
    """

    model_type = "priorvla_fusion"
    base_config_key = "fusion_transformer"

    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_latents: int = 8
    num_soft_tokens: int = 2

    def validate_architecture(self) -> None:
        """Raises ValueError naming the field and its value."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must divide hidden_size={self.hidden_size}"
            )
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


@strict
class PriorVLAConfig(MotionConfig):
    """Configuration of `PriorVLAModel`: a vision-language-action model, or with `language=False` a vision-action prior.

    Args:
        fusion (`str`, defaults to "latent"): the host, that is, how the expert is told what the backbone sees.
            `latent` is paper A's: a query token's output z' takes the place of the prior's latent. In the others the
            expert's layers look for themselves: `cross` at the last of `backbone_layers`, by cross-attention
            (GR00T-style), `joint` layer by layer, at keys and values beside its own (pi-style), `gated` through a
            stream of its own beside the actions, into which the backbone's layers are taken through gates (paper B).
        language (`bool`, defaults to True): False makes it a vision-action prior (rung 2), whose output the
            instruction cannot reach. Not with `latent`.
        gate (`str`, defaults to "zero"): form of the hosts' gates, with a weight w that is learned. `zero` adds w x a
            branch, per channel, and w is 0 wherever a prior must stay what it is; `additive` adds sigmoid(w) x a
            branch, one w (paper B); `convex` mixes by sigmoid(w), per channel (the code released with paper B).
        use_latent (`bool`, defaults to False): give z' to the expert of another host than `latent` as well. Not with
            `language=False`: z' says what is wanted, which a prior cannot know, and it reaches every layer.
        fusion_transformer (`FusionConfig`): the tail over the backbone's features that makes z'.
        tail (`str`, defaults to "transformer"): what computes z': the fusion transformer, or the `backbone` itself,
            which continues its sequence with the query token (paper A; generative backbones only).
        backbone (`dict | None`): `{source: hub | package, name, revision, sha256, dtype, image_size, tokens_per_image,
            prompt}`, see `describe_backbone`; a reference and never a path: a frozen backbone is attached after loading
            and not saved.
        backbone_layers (`int`, defaults to 12): layers of the backbone that are used, its first ones; what lies above
            the last tap is neither kept nor computed.
        vision_hidden_size, text_hidden_size (`int`, default 384): the backbone's, see `describe_backbone`.
        image_grid (`list[int] | None`): rows and columns of an image's tokens. Where given, every token is told its
            place (our choice, see `placed`). None in checkpoints from before.
        normalize_features (`bool`, defaults to False): tokens of the backbone are brought to mean 0 and variance 1,
            each by itself, before they are projected. `train` sets it; False in checkpoints from before.
        backbone_training (`str`, defaults to "frozen"): `frozen`, `lora` (adapters, saved in the checkpoint) or `full`
            (all of its weights, saved in the checkpoint).
        lora (`dict | None`): `{r, lora_alpha, lora_dropout, target_modules}` of peft's LoraConfig, over our defaults.
        stop_gradient_into_backbone (`bool`, defaults to False): the flow loss does not reach a backbone that is
            trained (knowledge insulation); the alignment of z' does.
        num_cameras (`int`, defaults to 1): camera slots, each with an embedding of its own.
        use_history (`bool`, defaults to False): feed the encoder's token of the past window to the host (paper A).
        history_size (`int`, defaults to 8): steps of the past window.
        And every argument of `MotionConfig`. An expert of motion layers alone is turned into one that sees, in every
        host but `latent`: all of its layers, with evenly spaced taps.
    """

    model_type = "priorvla"
    sub_configs = {**MotionConfig.sub_configs, "fusion_transformer": FusionConfig}

    fusion: str = "latent"
    language: bool = True
    gate: str = "zero"
    use_latent: bool = False
    fusion_transformer: Any = None  # FusionConfig, or a mapping of its fields
    tail: str = "transformer"
    backbone: dict[str, Any] | None = None
    backbone_layers: int = 12
    vision_hidden_size: int = 384
    text_hidden_size: int = 384
    image_grid: list[int] | None = None
    normalize_features: bool = False
    backbone_training: str = "frozen"
    lora: dict[str, Any] | None = None
    stop_gradient_into_backbone: bool = False
    num_cameras: int = 1
    use_history: bool = False
    history_size: int = 8

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.fusion_transformer, PreTrainedConfig):
            self.fusion_transformer = FusionConfig(**(self.fusion_transformer or {}))
        if not isinstance(self.expert, PreTrainedConfig):
            self.expert = ExpertConfig(**(self.expert or {}))
        if self.fusion in SEEING_FUSIONS and set(self.expert.expert_layers) == {"motion"}:
            layout = seeing_layout(self.fusion, self.language, len(self.expert.expert_layers), self.backbone_layers)
            self.expert = ExpertConfig.from_dict({**self.expert.to_dict(), **layout})
        super().__post_init__(**kwargs)

    @property
    def predicts_latent(self) -> bool:
        """Whether a query token's z' is computed and given to the expert."""
        return self.fusion == "latent" or self.use_latent

    @property
    def taps(self) -> tuple[int, ...]:
        """The backbone layers that are read, ascending."""
        read = {tap for tap in self.expert.tap_layers if tap is not None}
        return tuple(sorted(read | ({self.backbone_layers} if self.predicts_latent else set())))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # `from_pretrained(..., backbone=...)` is the model's argument, which asks for unused ones; the base class
        # would take it for our field.
        unused_is_wanted = kwargs.get("return_unused_kwargs")
        if "backbone" not in kwargs or (isinstance(kwargs["backbone"], dict) and not unused_is_wanted):
            return super().from_dict(config_dict, **kwargs)
        backbone = kwargs.pop("backbone")
        loaded = super().from_dict(config_dict, **kwargs)
        if not unused_is_wanted:
            return loaded
        config, unused = loaded
        return config, {**unused, "backbone": backbone}

    def validate_architecture(self) -> None:
        """Raises ValueError with what to do instead when the fields do not fit each other."""
        super().validate_architecture()
        for name, known in (
            ("fusion", FUSIONS),
            ("gate", GATES),
            ("tail", TAILS),
            ("backbone_training", BACKBONE_TRAININGS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown, use {', '.join(known)}")
        for name in ("history_size", "num_cameras", "backbone_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.image_grid is not None and (len(self.image_grid) != 2 or min(self.image_grid) < 1):
            raise ValueError(f"image_grid={self.image_grid} must be rows and columns, both at least 1, or None")
        if self.predicts_latent and "latent" not in self.expert.context_tokens:
            raise ValueError(
                "z' reaches the expert as its latent token: context_tokens must have 'latent' with fusion='latent' or "
                f"use_latent=True, got {self.expert.context_tokens}"
            )
        if self.use_latent and not self.language:
            raise ValueError(
                "use_latent=True with language=False: z' says what is wanted and reaches every layer of the expert, "
                "also those that must stay blind to the instruction: leave it out of a vision-action prior"
            )
        if self.fusion == "latent":
            self._validate_latent_host()
        else:
            self._validate_seeing_host()
        if self.use_history and self.encoder is None:
            raise ValueError(
                "use_history=True needs the trajectory encoder: set encoder, or take it from an action prior"
            )
        self._validate_backbone()

    def _validate_latent_host(self) -> None:
        if set(self.expert.expert_layers) != {"motion"}:
            raise ValueError(
                "fusion='latent' speaks to the expert through its latent token alone: expert_layers must only have "
                f"'motion', got {self.expert.expert_layers}; a vision-action prior needs a host that sees, one of "
                f"{', '.join(SEEING_FUSIONS)}"
            )
        if not self.language:
            raise ValueError(
                "fusion='latent' with language=False: without the instruction the query token has nothing to decide, "
                f"and no layer of the expert sees: make a vision-action prior with {', '.join(SEEING_FUSIONS)}"
            )

    def _validate_seeing_host(self) -> None:
        kinds, taps = self.expert.expert_layers, self.expert.tap_layers
        allowed = {"vision", "vision_language"} if self.language else {"vision"}
        if unfit := sorted(set(kinds) - allowed):
            raise ValueError(
                f"expert_layers has {unfit[0]!r}, fusion={self.fusion!r} with language={self.language} takes "
                f"{' and '.join(sorted(allowed))}"
            )
        if self.language and "vision_language" not in kinds:
            raise ValueError(
                "no expert layer reads the instruction: set language=False for a vision-action prior, or insert layers "
                "with PriorVLAModel.from_vision_action_prior"
            )
        for index, tap in enumerate(taps):
            if not 0 <= tap <= self.backbone_layers:
                raise ValueError(
                    f"tap_layers[{index}]={tap} is not among the backbone's layers 0 to {self.backbone_layers}"
                )
        if self.fusion == "cross" and set(taps) != {self.backbone_layers}:
            raise ValueError(
                f"fusion='cross' reads the last layer that is used: tap_layers must all be backbone_layers="
                f"{self.backbone_layers}, got {taps}"
            )

    def _validate_backbone(self) -> None:
        if self.stop_gradient_into_backbone and self.backbone_training != "frozen" and not self.predicts_latent:
            raise ValueError(
                f"stop_gradient_into_backbone=True leaves backbone_training={self.backbone_training!r} without any "
                f"gradient: with fusion={self.fusion!r} only the flow loss could train it. Use backbone_training="
                "'frozen', or use_latent=True"
            )
        if self.tail == "backbone" and not self.predicts_latent:
            raise ValueError("tail='backbone' makes z': it needs fusion='latent' or use_latent=True")
        if self.backbone is None:
            return
        unknown = sorted(set(self.backbone) - set(BACKBONE_KEYS))
        if unknown:
            raise ValueError(f"backbone has the unknown key {unknown[0]!r}, use {', '.join(BACKBONE_KEYS)}")
        require_backbone_reference(self.backbone)


__all__ = ["FUSIONS", "GATES", "SEEING_FUSIONS", "FusionConfig", "PriorVLAConfig"]
