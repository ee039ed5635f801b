"""InternVL 2.5 and 3, in transformers' own format (`-hf`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .generative_backbone import GenerativeBackbone, ImageTokens, image_features
from .prompt_format import PromptFormat


class InternVLBackbone(GenerativeBackbone):
    """InternViT, whose patches are shuffled into fewer and wider tokens, before a Qwen or Llama; one tile an image."""

    model_types = ("internvl",)
    image_placeholder = "<IMG_CONTEXT>"

    @classmethod
    def grid_of(cls, config: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        patch = config.vision_config.patch_size
        patch = patch if isinstance(patch, int) else patch[0]
        side = round(patch / config.downsample_ratio)
        if image_size[0] != image_size[1] or image_size[0] % side:
            raise ValueError(
                f"{config.model_type!r} takes square images whose side is a multiple of {side} pixels, got "
                f"{image_size}: set another image size"
            )
        return image_size[0] // side, image_size[1] // side

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
