"""Rungs 2 and 3: the action expert beside a vision-language backbone."""

# No `from __future__ import annotations` here: as strings, types would not be checked by `strict`.

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .backbone_reference import BACKBONE_KEYS, require_backbone_reference
from .configuration_expert import MotionConfig


@strict
class FusionConfig(PreTrainedConfig):
    """Shape of the small transformer that reads a dual encoder's features and answers with the query token's z'.

    Args:
        hidden_size (`int`, defaults to 128), intermediate_size (`int`, defaults to 384), num_hidden_layers (`int`,
        defaults to 3), num_attention_heads (`int`, defaults to 4): the transformer's.
        num_latents (`int`, defaults to 8): extra tokens that gather vision beside the query.
        num_soft_tokens (`int`, defaults to 2): soft tokens p_k of the embodiment, here after the text.
        num_cameras (`int`, defaults to 1): camera slots, each with an embedding of its own.
    """

    model_type = "priorvla_fusion"
    base_config_key = "fusion_transformer"

    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_latents: int = 8
    num_soft_tokens: int = 2
    num_cameras: int = 1

    def validate_architecture(self) -> None:
        """Raises ValueError naming the field and its value."""
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must divide hidden_size={self.hidden_size}"
            )
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_cameras"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


@strict
class PriorVLAConfig(MotionConfig):
    """Configuration of `PriorVLAModel`.

    Args:
        fusion (`str`, defaults to "latent"): how the expert is told what the backbone sees. `latent` is paper A's: a
            query token's output z' takes the place of the prior's latent.
        fusion_transformer (`FusionConfig`): the tail over a dual encoder's features.
        backbone (`dict | None`): `{source: hub | package, name, revision, sha256, dtype}`; a reference and never a
            path: the frozen backbone is attached after loading and not saved.
        vision_hidden_size, text_hidden_size (`int`, default 384): widths of the backbone's features.
        use_history (`bool`, defaults to False): feed the encoder's token of the past window to the fusion (paper A).
        history_size (`int`, defaults to 8): steps of the past window.
        And every argument of `MotionConfig`.
    """

    model_type = "priorvla"
    sub_configs = {**MotionConfig.sub_configs, "fusion_transformer": FusionConfig}

    fusion: str = "latent"
    fusion_transformer: Any = None  # FusionConfig, or a mapping of its fields
    backbone: dict[str, Any] | None = None
    vision_hidden_size: int = 384
    text_hidden_size: int = 384
    use_history: bool = False
    history_size: int = 8

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.fusion_transformer, PreTrainedConfig):
            self.fusion_transformer = FusionConfig(**(self.fusion_transformer or {}))
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # `from_pretrained(..., backbone=...)` is the model's argument; the base class would take it for our field.
        if "backbone" not in kwargs:
            return super().from_dict(config_dict, **kwargs)
        backbone = kwargs.pop("backbone")
        loaded = super().from_dict(config_dict, **kwargs)
        if not kwargs.get("return_unused_kwargs"):
            return loaded
        config, unused = loaded
        return config, {**unused, "backbone": backbone}

    def validate_architecture(self) -> None:
        """Raises ValueError with what to do instead when the fields do not fit each other."""
        super().validate_architecture()
        if self.fusion != "latent":
            raise ValueError(f"fusion={self.fusion!r} is unknown, use 'latent'")
        if "latent" not in self.expert.context_tokens or set(self.expert.expert_layers) != {"motion"}:
            raise ValueError(
                "fusion='latent' speaks to the expert through its latent token alone: context_tokens must have "
                f"'latent' and expert_layers only 'motion', got {self.expert.context_tokens} and "
                f"{self.expert.expert_layers}"
            )
        if self.use_history and self.encoder is None:
            raise ValueError(
                "use_history=True needs the trajectory encoder: set encoder, or take it from an action prior"
            )
        if self.history_size < 1:
            raise ValueError(f"history_size={self.history_size} must be at least 1")
        self._validate_backbone()

    def _validate_backbone(self) -> None:
        if self.backbone is None:
            return
        unknown = sorted(set(self.backbone) - set(BACKBONE_KEYS))
        if unknown:
            raise ValueError(f"backbone has the unknown key {unknown[0]!r}, use {', '.join(BACKBONE_KEYS)}")
        require_backbone_reference(self.backbone)


__all__ = ["FusionConfig", "PriorVLAConfig"]
