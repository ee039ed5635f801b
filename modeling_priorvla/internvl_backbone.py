"""InternVL 2.5 and 3, in transformers' own format (`-hf`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .generative_backbone import GenerativeBackbone, ImageTokens, image_features, shuffled_grid
from .prompt_format import PromptFormat


class InternVLBackbone(GenerativeBackbone):
    """InternViT, whose patches are shuffled into fewer and wider tokens, before a Qwen or Llama; one tile an image."""

    model_types = ("internvl",)
    image_placeholder = "<IMG_CONTEXT>"

    @classmethod
    def grid_of(cls, config: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        return shuffled_grid(config, image_size, round(1 / config.downsample_ratio))

    @classmethod
    def raw_prompt(cls, tokenizer: Any) -> PromptFormat:
        return PromptFormat(before="<img>", after="</img>", text_template="\n{}")

    def image_tokens(self, images: Tensor) -> ImageTokens:
        config = self.model.config
        features = self.model.get_image_features(
            images,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        )
        return ImageTokens(image_features(features))


__all__ = ["InternVLBackbone"]
