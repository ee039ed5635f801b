"""Arguments of rung 3."""

from __future__ import annotations

from dataclasses import dataclass, field

from .observing_arguments import ObservingTrainingArguments

DECODERS = ("reused", "frozen", "random")
DISTILLATION_STEPS = 5000


@dataclass
class VLATrainingArguments(ObservingTrainingArguments):
    """Arguments of `VLATrainer`; see `ObservingTrainingArguments`.

    Raises ValueError on an unknown decoder or a negative number of distillation steps.
    """

    distillation_steps: int | None = field(
        default=None,
        metadata={
            "help": "Steps over which the weight of alignment and reconstruction falls linearly from 1 to 0; "
            "afterwards the trajectory encoder is not run. 0: no distillation. Default: 5000 (paper A, of 30000) where "
            "the model has a z' and a trajectory encoder, otherwise 0."
        },
    )
    decoder: str = field(
        default="reused",
        metadata={
            "help": "The action expert at the start: reused (as it was loaded), frozen, or random (fresh weights)."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decoder not in DECODERS:
            raise ValueError(f"decoder={self.decoder!r}, use {', '.join(DECODERS)}")
        if self.distillation_steps is not None and self.distillation_steps < 0:
            raise ValueError(
                f"distillation_steps={self.distillation_steps} must not be negative; 0 turns distillation off"
            )


__all__ = ["DISTILLATION_STEPS", "VLATrainingArguments"]
