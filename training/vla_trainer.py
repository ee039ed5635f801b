"""Rung 3's Trainer: paper A, Stage 2."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..modeling_priorvla.backbone import LanguageFeatures, VisionFeatures
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from .stage_trainer import StageTrainer
from .vla_arguments import VLATrainingArguments


class VLATrainer(StageTrainer):
    """Minimises L_pred + lambda(k) (L_align + L_recon), lambda(k) = max(0, 1 - k / distillation_steps), at step k.

    The model may come from an action prior or be fresh (the control); nothing else differs. See `VLATrainingArguments`
    for the decoder's start and `StageTrainer` for the other arguments.

    Raises:
        ValueError: when distillation is asked for and the model has no trajectory encoder.
    """

    args: VLATrainingArguments
    model: PriorVLAModel
    card_arguments = (*StageTrainer.card_arguments, "distillation_steps", "decoder", "expert_lr_scale")

    def __init__(self, model: PriorVLAModel, args: VLATrainingArguments, **kwargs: Any) -> None:
        if args.distillation_steps and model.encoder is None:
            raise ValueError(
                f"distillation_steps={args.distillation_steps} but the model has no trajectory encoder: start from an "
                "action prior (PriorVLAModel.from_action_prior), or set distillation_steps=0"
            )
        if args.decoder == "frozen":
            model.expert.requires_grad_(False)
        elif args.decoder == "random":
            reinitialize(model, model.expert)
        scales = {"expert.": args.expert_lr_scale, "encoder.": args.expert_lr_scale}
        super().__init__(model, args, lr_scales=scales, **kwargs)
        self._applied_weight = self.distillation_weight

    @property
    def distillation_weight(self) -> float:
        """lambda at the current step."""
        steps = self.args.distillation_steps
        return max(0.0, 1.0 - self.state.global_step / steps) if steps else 0.0

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        weight = self.distillation_weight if model.training else 0.0
        if model.training:
            self._applied_weight = weight
        inputs = {**as_features(inputs), "distillation_weight": weight}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds lambda as it was at the last step."""
        if "loss" in logs:
            logs["distillation_weight"] = self._applied_weight
        super().log(logs, start_time)


def as_features(inputs: dict[str, Any]) -> dict[str, Any]:
    """Cached features of a batch, flat tensors as a Trainer moves them, as the model's two feature objects."""
    inputs = dict(inputs)
    if "vision_hidden_states" in inputs:
        hidden_states, mask = inputs.pop("vision_hidden_states"), inputs.pop("vision_mask")
        inputs["vision_features"] = VisionFeatures(hidden_states.flatten(1, 2), mask.flatten(1, 2), mask.shape[1])
    if "language_hidden_states" in inputs:
        inputs["language_features"] = LanguageFeatures(
            inputs.pop("language_hidden_states"), inputs.pop("language_mask")
        )
    return inputs


def reinitialize(model: PriorVLAModel, part: nn.Module) -> None:
    """Draws fresh weights for one `part` of `model`."""
    flagged: list[Any] = [*part.modules(), *part.parameters()]
    for item in flagged:
        item._is_hf_initialized = False
    part.apply(model._init_weights)


__all__ = ["VLATrainer"]
