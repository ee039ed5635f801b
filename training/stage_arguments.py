"""Training arguments that every stage shares."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from ..hub_cards.licenses import UNKNOWN, require_license

PUSH_STRATEGIES = (HubStrategy.END, HubStrategy.EVERY_SAVE)


@dataclass
class StageTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the defaults that small robot models want, and an EMA.

    Raises ValueError when `ema_decay` is outside [0, 1), the licence is none of the Hub's or missing with
    `push_to_hub`, or `hub_strategy` is one that uploads the optimizer's state.
    """

    ema_decay: float = field(
        default=0.99,
        metadata={
            "help": "Decay of the exponential moving average of the trained weights; 0 turns it off. A saved "
            "model.safetensors holds the average, which is what you want to load."
        },
    )
    license: str = field(
        default=UNKNOWN,
        metadata={"help": "The Hub's identifier of the weights' licence, for the card; yours to decide."},
    )
    hub_strategy: HubStrategy | str = field(
        default="end",
        metadata={"help": "With push_to_hub: publish at the `end` of the run, or also at `every_save`."},
    )
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Whether a repository on the Hub is private; only False makes it public."}
    )
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Windows a step, on one device."})
    per_device_eval_batch_size: int = field(
        default=128, metadata={"help": "Windows an evaluation step, on one device."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning rate over the steps."})
    warmup_steps: float = field(default=100, metadata={"help": "Steps over which the learning rate rises from 0."})
    weight_decay: float = field(
        default=0.01, metadata={"help": "Of matrices; never of what belongs to one embodiment."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=True,
        metadata={"help": "Leave this on: a body that is in no window of a step has no gradient, on any process."},
    )
    ddp_timeout: int = field(
        default=24 * 3600,
        metadata={"help": "Seconds that processes wait for one that reads, fits or measures; one that dies ends all."},
    )
    logging_steps: float = field(default=25, metadata={"help": "Steps between two lines of the log."})
    save_steps: float = field(default=1000, metadata={"help": "Steps between two checkpoints."})
    save_total_limit: int | None = field(default=3, metadata={"help": "Checkpoints that are kept."})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "trackio, tensorboard, ... or none."})
    dataloader_pin_memory: bool = field(
        default_factory=torch.cuda.is_available, metadata={"help": "Page-locked batches; only a GPU gains from them."}
    )
    remove_unused_columns: bool = field(default=False, metadata={"help": "Batches are whole: leave this off."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["actions"], metadata={"help": "Without it there would be no evaluation loss."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must be in [0, 1); 0 turns the average off")
        if self.hub_strategy not in PUSH_STRATEGIES:
            raise ValueError(
                f"hub_strategy={HubStrategy(self.hub_strategy).value!r} uploads the optimizer's state, pickled: use "
                "'end' or 'every_save', and keep the run's folder to resume from"
            )
        require_license(self.license)
        if self.push_to_hub and self.license == UNKNOWN:
            raise ValueError(
                "push_to_hub=True needs license=: name the weights' licence by the Hub's identifier, such as "
                "'apache-2.0'"
            )


__all__ = ["StageTrainingArguments"]
