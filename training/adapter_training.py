"""What a Trainer needs to train an adapter: checkpoints that have it alone, and go on from it to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from ..modeling_priorvla.adapters import adapters_in, read_adapter, save_adapter


class TrainsAdapters(Trainer):
    """A Trainer that saves and reads the adapter of a model that has one, and every other model as before.

    The model that it trains is the policy itself and not peft's wrapping, so that names of weights stay what they are.
    Stands behind the Trainers that add something to what is saved, in the order in which Python calls them.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        model: Any = self.model
        if adapters_in(model) is None:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            folder = output_dir or self.args.output_dir
            assert folder is not None  # TrainingArguments fills it in
            save_adapter(model, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        policy: Any = self.model
        if adapters_in(policy) is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            read_adapter(policy, Path(resume_from_checkpoint))


__all__ = ["TrainsAdapters"]
