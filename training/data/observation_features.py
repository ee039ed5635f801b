"""From cached features in a batch to the features that a model takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...modeling_priorvla.backbone_features import LanguageFeatures, VisionFeatures


def as_features(inputs: Mapping[str, Any], taps: tuple[int, ...]) -> dict[str, Any]:
    """Cached features of a batch, flat tensors as a Trainer moves them, as the model's two feature objects.

    `vision_hidden_states` (B, T, C, P, d_v) and `language_hidden_states` (B, T or 1, L, d_t) are of the layers `taps`;
    everything else stays as it is. Raises ValueError when they are of more or fewer layers.
    """
    inputs = dict(inputs)
    if "vision_hidden_states" in inputs:
        hidden_states, mask = inputs.pop("vision_hidden_states"), inputs.pop("vision_mask")
        inputs["vision_features"] = VisionFeatures(hidden_states.flatten(2, 3), mask.flatten(1, 2), mask.shape[1], taps)
    if "language_hidden_states" in inputs:
        hidden_states = inputs.pop("language_hidden_states")
        own = None if hidden_states.shape[1] == 1 else taps
        inputs["language_features"] = LanguageFeatures(hidden_states, inputs.pop("language_mask"), own)
    return inputs


__all__ = ["as_features"]
