"""Arguments of rung 1."""

from __future__ import annotations

from dataclasses import dataclass, field

from .stage_arguments import StageTrainingArguments


@dataclass
class ActionPriorTrainingArguments(StageTrainingArguments):
    """Arguments of `ActionPriorTrainer`; see `StageTrainingArguments`."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    per_device_train_batch_size: int = field(default=64, metadata={"help": "Windows a step, on one device."})


__all__ = ["ActionPriorTrainingArguments"]
