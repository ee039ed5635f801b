"""PaliGemma 1 and 2, and Gemma 3: SigLIP before a Gemma that looks at images in both directions."""

from __future__ import annotations

from math import isqrt
from typing import Any, ClassVar

from torch import Tensor

from .backbone_features import interpolation
from .generative_backbone import Attention, GenerativeBackbone, ImageTokens, image_features
from .prompt_format import WORDS, PromptFormat


class PaliGemmaBackbone(GenerativeBackbone):
    """Images see all images, words see images and all words.

    The model was trained with images that see the words as well. They cannot here: what a vision-action prior reads
    must not know the instruction.
    """

    model_types = ("paligemma",)
    image_placeholder = "<image>"
    attention: ClassVar[Attention] = "prefix"

    @classmethod
    def raw_prompt(cls, tokenizer: Any) -> PromptFormat:
        return PromptFormat(text_template=f"{tokenizer.bos_token or ''}{WORDS}\n")

    def image_tokens(self, images: Tensor) -> ImageTokens:
        options = interpolation(self.model.config.vision_config, images)
        return ImageTokens(image_features(self.model.get_image_features(images, **options)))


class Gemma3Backbone(PaliGemmaBackbone):
    """Tokens of one image see each other, everything else is causal; patches are averaged into fewer tokens.

    Line ends that a chat template and an image's frame put side by side stay tokens of their own, where Gemma's own
    processor may merge them into one.
    """

    model_types = ("gemma3",)
    image_placeholder = "<start_of_image>"
    attention: ClassVar[Attention] = "image"

    @classmethod
    def grid_of(cls, config: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        pixels = config.vision_config.image_size
        if tuple(image_size) != (pixels, pixels):
            raise ValueError(
                f"{config.model_type!r} takes images of {pixels} x {pixels} pixels, got {image_size}: its projector is "
                "made for that size; ask for fewer tokens_per_image instead"
            )
        side = isqrt(config.mm_tokens_per_image)
        return side, side

    @classmethod
    def raw_prompt(cls, tokenizer: Any) -> PromptFormat:
        return PromptFormat(tokenizer.bos_token or "", "\n\n<start_of_image>", "<end_of_image>\n\n")


__all__ = ["Gemma3Backbone", "PaliGemmaBackbone"]
