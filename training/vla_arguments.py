"""Arguments of rung 3."""

from __future__ import annotations

from dataclasses import dataclass, field

from .stage_arguments import StageTrainingArguments

DECODERS = ("reused", "frozen", "random")


@dataclass
class VLATrainingArguments(StageTrainingArguments):
    """Arguments of `VLATrainer`; see `StageTrainingArguments`.

    Raises ValueError on an unknown decoder, a negative number of distillation steps or learning-rate factor.
    """

    learning_rate: float = field(default=8e-4, metadata={"help": "Peak learning rate of AdamW."})
    distillation_steps: int = field(
        default=5000,
        metadata={
            "help": "Steps over which the weight of alignment and reconstruction falls linearly from 1 to 0 (paper A: "
            "5000 of 30000); afterwards the trajectory encoder is not run. 0: no distillation."
        },
    )
    decoder: str = field(
        default="reused",
        metadata={
            "help": "The action expert at the start: reused (as it was loaded), frozen, or random (fresh weights)."
        },
    )
    expert_lr_scale: float = field(
        default=1.0, metadata={"help": "Learning-rate factor of the action expert and the trajectory encoder."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder={self.decoder!r}, use {', '.join(DECODERS)}")
        if self.distillation_steps < 0:
            raise ValueError(
                f"distillation_steps={self.distillation_steps} must not be negative; 0 turns distillation off"
            )
        if self.expert_lr_scale <= 0:
            raise ValueError(
                f"expert_lr_scale={self.expert_lr_scale} must be positive; decoder='frozen' stops the expert"
            )


__all__ = ["VLATrainingArguments"]
