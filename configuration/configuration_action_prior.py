"""Rung 1: how robots move. Paper A, Stage 1."""

# No `from __future__ import annotations` here: as strings, types would not be checked by `strict`.

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_expert import EncoderConfig, MotionConfig


@strict
class ActionPriorConfig(MotionConfig):
    """Configuration of `ActionPriorModel`: an action autoencoder with a generative (flow-matching) decoder.

    Args:
        latent_noise (`float`, defaults to 0.5): norm of the noise added to the unit-norm latent in training, before it
            is normalised again. Our choice: without it a latent learns to copy the chunk and is a worse prior.
        latent_dropout (`float`, defaults to 0.1): probability that training replaces the latent by the learned null,
            so that the expert also knows motion without being told which. Our choice.
        And every argument of `MotionConfig`.
    """

    model_type = "priorvla_action_prior"

    latent_noise: float | int = 0.5
    latent_dropout: float | int = 0.1

    def __post_init__(self, **kwargs: Any) -> None:
        if self.encoder is None:
            self.encoder = EncoderConfig()
        super().__post_init__(**kwargs)

    def validate_architecture(self) -> None:
        """Raises ValueError with what to do instead when the fields do not fit each other."""
        super().validate_architecture()
        if set(self.expert.expert_layers) != {"motion"}:
            raise ValueError(
                "an action prior sees no images, so its expert_layers must all be 'motion', "
                f"got {self.expert.expert_layers}"
            )
        if "latent" not in self.expert.context_tokens:
            raise ValueError("context_tokens has no 'latent': an action prior's decoder is told the latent")
        if self.latent_noise < 0:
            raise ValueError(f"latent_noise={self.latent_noise} must not be negative")
        if not 0 <= self.latent_dropout < 1:
            raise ValueError(f"latent_dropout={self.latent_dropout} must be in [0, 1)")


__all__ = ["ActionPriorConfig"]
