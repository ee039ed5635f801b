"""SmolVLM, SmolVLM2 and Idefics3."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor
from transformers import PreTrainedModel

from .generative_backbone import GenerativeBackbone, ImageTokens, shuffled_grid
from .prompt_format import PromptFormat


class Idefics3Backbone(GenerativeBackbone):
    """SigLIP, whose patches are shuffled into fewer and wider tokens, before a Llama."""

    model_types = ("smolvlm", "idefics3")
    image_placeholder = "<image>"

    @classmethod
    def grid_of(cls, config: Any, image_size: tuple[int, int]) -> tuple[int, int]:
        return shuffled_grid(config, image_size, config.scale_factor)

    @classmethod
    def raw_prompt(cls, tokenizer: Any) -> PromptFormat:
        known = tokenizer.get_vocab()
        fake, whole = (token if token in known else "" for token in ("<fake_token_around_image>", "<global-img>"))
        return PromptFormat(start=tokenizer.bos_token or "", before=fake + whole, after=fake)

    @property
    def language_model(self) -> PreTrainedModel:
        return cast(PreTrainedModel, self.model.text_model)

    def image_tokens(self, images: Tensor) -> ImageTokens:
        # Not through get_image_features: that drops images of zeros alone, and a grey wall is one.
        return ImageTokens(self.model.connector(self.model.vision_model(pixel_values=images).last_hidden_state))


__all__ = ["Idefics3Backbone"]
