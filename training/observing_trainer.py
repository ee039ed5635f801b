"""What the Trainers of rungs 2 and 3 share: features in batches, a backbone's own learning rate, gates in the log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling_priorvla.attached_backbone import TRAINED
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from .component_weights import component_weights
from .data.observation_features import as_features
from .observing_arguments import ObservingTrainingArguments
from .stage_trainer import StageTrainer


class ObservingTrainer(StageTrainer):
    """A `StageTrainer` of a `PriorVLAModel`, on batches of `ObservationDataset` or `LiveObservationDataset`.

    Raises:
        ValueError: `loss_weights` are given without a processor, which knows the bodies' dims, or do not fit them; a
            backbone is to be trained that is not attached, not float32 (in full), or whose features are cached; cached
            features are of other layers than the model reads.
    """

    args: ObservingTrainingArguments
    model: PriorVLAModel
    card_arguments = (*StageTrainer.card_arguments, "expert_lr_scale", "loss_weights")

    def __init__(self, model: PriorVLAModel, args: ObservingTrainingArguments, **kwargs: Any) -> None:
        _require_trainable_backbone(model)
        for name in ("train_dataset", "eval_dataset"):
            _require_fitting_features(model, kwargs.get(name), name)
        backbone = rf"^{TRAINED}"
        scales = {
            r"^expert\..*_gate\.weight$": args.gate_lr_scale,
            r"^(expert|encoder)\.": args.expert_lr_scale,
            backbone: args.backbone_learning_rate / args.learning_rate,
        }
        if model.config.backbone_training != "frozen":
            self.card_arguments = (*self.card_arguments, "backbone_learning_rate", "backbone_weight_decay")
        super().__init__(model, args, lr_scales=scales, weight_decays={backbone: args.backbone_weight_decay}, **kwargs)
        self._loss_weights: Tensor | None = None
        if args.loss_weights is not None:
            if self.processor is None:
                raise ValueError("loss_weights are of the bodies' dims: pass processor=, which knows them")
            self._loss_weights = component_weights(self.processor.embodiments, args.loss_weights).to(args.device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        inputs = {**as_features(inputs, self.model.config.taps), "loss_weights": self._loss_weights}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def saved_parameters(self) -> Iterator[Tensor]:
        yield from self.model.trained_tensors().values()
        for name, parameter in self.model.named_parameters():
            if not name.startswith(TRAINED):
                yield parameter

    def card_values(self) -> dict[str, Any]:
        return {"gates": self.model.gate_values()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds how far the gates of each kind are open, averaged over layers."""
        if "loss" in logs:
            kinds: dict[str, list[float]] = defaultdict(list)
            for name, value in self.model.gate_values().items():
                kinds[name.rpartition(".")[2]].append(value)
            logs |= {f"gate_{kind.removesuffix('_gate')}": sum(own) / len(own) for kind, own in kinds.items()}
        super().log(logs, start_time)


def _require_trainable_backbone(model: PriorVLAModel) -> None:
    training, backbone = model.config.backbone_training, model.backbone
    if training != "frozen" and backbone is None:
        raise ValueError(f"backbone_training={training!r} and no backbone is attached: call model.attach_backbone()")
    if training == "full" and backbone is not None and backbone.dtype != torch.float32:
        raise ValueError(
            f"backbone_training='full' with a backbone in {backbone.dtype}, in which small steps vanish: load it in "
            "float32 (--backbone-dtype float32, config.backbone['dtype']), or train adapters, which are float32 beside "
            "it (backbone_training='lora')"
        )


def _require_fitting_features(model: PriorVLAModel, dataset: Any, name: str) -> None:
    """Whether a dataset of cached features, which has `taps`, is one for this model."""
    if (taps := getattr(dataset, "taps", None)) is None:
        return
    config = model.config
    if config.backbone_training != "frozen":
        raise ValueError(
            f"{name} holds features of the backbone as it was, and backbone_training={config.backbone_training!r}: use "
            "LiveObservationDataset, whose images go through the backbone at every step"
        )
    if tuple(taps) != config.taps:
        raise ValueError(
            f"{name} holds features of the backbone's layers {tuple(taps)}, the model reads {config.taps}: make it "
            "with taps=model.config.taps"
        )


__all__ = ["ObservingTrainer"]
