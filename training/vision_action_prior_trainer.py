"""Rung 2's Trainer: paper B, Stage 1."""

from __future__ import annotations

from typing import Any

from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from .observing_arguments import ObservingTrainingArguments
from .observing_trainer import ObservingTrainer


class VisionActionPriorTrainingArguments(ObservingTrainingArguments):
    """Arguments of `VisionActionPriorTrainer`; see `ObservingTrainingArguments`."""


class VisionActionPriorTrainer(ObservingTrainer):
    """Teaches an action expert what a scene affords: the flow loss on what is seen and felt, and not one word.

    The model may come from an action prior or be fresh; the backbone is frozen. See `ObservingTrainer`.

    Raises:
        ValueError: when the model reads instructions, or its backbone is to be trained.
    """

    def __init__(self, model: PriorVLAModel, args: ObservingTrainingArguments, **kwargs: Any) -> None:
        if model.config.language:
            raise ValueError(
                "this model reads instructions, a vision-action prior does not: build it with language=False, or train "
                "it with VLATrainer"
            )
        if model.config.backbone_training != "frozen":
            raise ValueError(
                f"backbone_training={model.config.backbone_training!r}: a vision-action prior refers to its backbone "
                "as it was published, so that others can go on from it: leave it 'frozen' on this rung"
            )
        super().__init__(model, args, **kwargs)


__all__ = ["VisionActionPriorTrainer", "VisionActionPriorTrainingArguments"]
