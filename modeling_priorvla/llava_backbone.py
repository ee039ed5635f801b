"""Llava: any vision encoder of transformers whose patches a projector hands to any language model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .backbone_features import interpolation
from .generative_backbone import GenerativeBackbone, ImageTokens, image_features
from .prompt_format import PromptFormat, first_token


class LlavaBackbone(GenerativeBackbone):
    """One token a patch."""

    model_types = ("llava",)
    image_placeholder = "<image>"
    heads = GenerativeBackbone.heads | {"mask_token", "pooler"}

    @classmethod
    def raw_prompt(cls, tokenizer: Any) -> PromptFormat:
        return PromptFormat(start=first_token(tokenizer), text_template="\n{}")

    def is_unused(self, name: str) -> bool:
        """Beside heads: the vision layers behind the last one that is read, and the norm behind all of them."""
        first, *rest = name.split(".")
        config = self.model.config
        if first != "vision_tower":
            return super().is_unused(name)
        read = config.vision_feature_layer
        layers = config.vision_config.num_hidden_layers
        last = max(layer % (layers + 1) for layer in ([read] if isinstance(read, int) else read))
        layer = next((int(part) for part in rest if part.isdecimal()), None)
        behind = layer >= last if layer is not None else not {"layernorm", "post_layernorm"}.isdisjoint(rest)
        return behind or super().is_unused(name)

    def image_tokens(self, images: Tensor) -> ImageTokens:
        config = self.model.config
        features = self.model.get_image_features(
            images,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            **interpolation(config.vision_config, images),
        )
        return ImageTokens(image_features(features))


__all__ = ["LlavaBackbone"]
