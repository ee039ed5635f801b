"""Rung 1's Trainer: paper A, Stage 1."""

from __future__ import annotations

from typing import Any

from ..modeling_priorvla.modeling_action_prior import ActionPriorModel
from .action_prior_arguments import ActionPriorTrainingArguments
from .stage_trainer import StageTrainer


class ActionPriorTrainer(StageTrainer):
    """Minimises L_recon over windows of motion; no image is ever opened. Arguments: see `StageTrainer`."""

    args: ActionPriorTrainingArguments
    model: ActionPriorModel

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs = {key: value for key, value in inputs.items() if key in BATCH_KEYS}
        return super().compute_loss(model, inputs, *args, **kwargs)


BATCH_KEYS = ("actions", "action_mask", "states", "embodiment_ids")

__all__ = ["ActionPriorTrainer"]
