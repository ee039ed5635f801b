"""LeRobot's pipelines around a policy of ours: names, batch dimension and device, and no normalisation.

Normalising, and turning chunks back into commands, is the affair of the checkpoint's `PriorVLAProcessor`, inside the
policy. A pipeline could not do it: LeRobot takes single steps from a queue, and a step that was learned relative to the
state is only worth something with the state from which its chunk was predicted. LeRobot's own normalising steps are
there all the same, as identities, because `lerobot-train` addresses them by name.
"""

from __future__ import annotations

from typing import Any

from lerobot.processor import PolicyProcessorPipeline, make_default_pre_post_processors

from .configuration_priorvla import PriorVLAConfig


def make_priorvla_pre_post_processors(
    config: PriorVLAConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[PolicyProcessorPipeline, PolicyProcessorPipeline]:
    """The pipelines before and after the policy; `dataset_stats` are not used, the checkpoint has its own."""
    return make_default_pre_post_processors(config, None)  # type: ignore[no-any-return]


__all__ = ["make_priorvla_pre_post_processors"]
