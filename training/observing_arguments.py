"""Arguments of the rungs that see: 2 and 3."""

from __future__ import annotations

from dataclasses import dataclass, field

from .stage_arguments import StageTrainingArguments


@dataclass
class ObservingTrainingArguments(StageTrainingArguments):
    """What `VisionActionPriorTrainer` and `VLATrainer` take beside `StageTrainingArguments`.

    Raises ValueError on a learning rate or a factor of one that is not positive, and on `flow_draws` below 1.
    """

    flow_draws: int = field(
        default=1,
        metadata={
            "help": "Noises and times that every window of a step is shown under; what is seen and heard is computed "
            "once for all of them (CogACT's repeated diffusion steps)."
        },
    )
    learning_rate: float = field(default=8e-4, metadata={"help": "Peak learning rate of AdamW."})
    expert_lr_scale: float = field(
        default=1.0, metadata={"help": "Learning-rate factor of the action expert and the trajectory encoder."}
    )
    gate_lr_scale: float = field(
        default=10.0,
        metadata={
            "help": "Learning-rate factor of the hosts' gates, which are slow to open from 0. Our choice: a loss of "
            "0.134 against 0.152 with a factor of 1 (cross, from an action prior, 400 steps on Meta-World)."
        },
    )
    backbone_learning_rate: float = field(
        default=1e-5, metadata={"help": "Peak learning rate of a backbone that is trained, adapters too (paper B)."}
    )
    backbone_weight_decay: float = field(default=0.0, metadata={"help": "Of such a backbone's matrices."})
    loss_weights: dict[str, float] | None = field(
        default=None,
        metadata={"help": "What an error in position, rotation and gripper weighs, for example 30, 10, 10 (paper B)."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.flow_draws < 1:
            raise ValueError(f"flow_draws={self.flow_draws} must be at least 1: a window is shown under some noise")
        for name in ("expert_lr_scale", "gate_lr_scale", "backbone_learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(
                    f"{name}={getattr(self, name)} must be positive; decoder='frozen' stops the expert, the model's "
                    "backbone_training='frozen' the backbone"
                )


__all__ = ["ObservingTrainingArguments"]
