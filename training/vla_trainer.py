"""Rung 3's Trainer: Stage 2 of both papers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..configuration.adapter_files import own_bodies
from ..hub_cards.adapter_facts import adapter_config
from ..hub_cards.checkpoints import split_revision
from ..modeling_priorvla.adapter_bodies import ids_alone
from ..modeling_priorvla.adapters import adapter_tensors, adapters_in, adapts_backbone, add_adapter
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from .adapter_training import TrainsAdapters
from .observing_trainer import ObservingTrainer
from .vla_arguments import DISTILLATION_STEPS, VLATrainingArguments

if TYPE_CHECKING:
    from peft import LoraConfig


class VLATrainer(ObservingTrainer, TrainsAdapters):
    """Minimises L_pred + lambda(k) (L_align + L_recon), lambda(k) = max(0, 1 - k / distillation_steps), at step k.

    Without z' (most hosts) L_pred is all there is. The model may come from a prior of either kind or be fresh (the
    control); nothing else differs. See `VLATrainingArguments` for the decoder's start, and `ObservingTrainer`.

    Args:
        peft_config: of an adapter (see `lora_config`) that is put into the model and trained, saved and averaged alone;
            everything else stays as it is. Nothing is distilled then.
        base_model: where the adapter will find its base (`owner/name@revision`, or a folder); default: where the model
            was loaded from.

    Raises:
        ValueError: when the model reads no instruction, distillation is asked for that it has no z' or no trajectory
            encoder for, or the decoder is to be frozen where its layers are all that sees; and with `peft_config` on
            settings that an adapter has no use for, or cached features of a backbone that it changes.
    """

    args: VLATrainingArguments
    card_arguments = (*ObservingTrainer.card_arguments, "decoder")

    def __init__(
        self, model: PriorVLAModel, args: VLATrainingArguments, *, peft_config: LoraConfig | None = None, **kwargs: Any
    ) -> None:
        if not model.config.language:
            raise ValueError(
                "this model is a vision-action prior and reads no instruction: insert layers that do with "
                "PriorVLAModel.from_vision_action_prior, or train it with VisionActionPriorTrainer"
            )
        if peft_config is not None:
            _put_in(model, peft_config, args, kwargs)
        args.distillation_steps = distillation_steps(model, args)
        _require_a_gradient(model, args.distillation_steps)
        if args.distillation_steps:
            self.card_arguments = (*self.card_arguments, "distillation_steps")
        if args.decoder == "frozen":
            if model.config.fusion != "latent":
                raise ValueError(
                    f"decoder='frozen' with fusion={model.config.fusion!r}: there the expert's own layers see and "
                    "read, so that a frozen one would never learn to: use decoder='reused', or fusion='latent'"
                )
            model.expert.requires_grad_(False)
        elif args.decoder == "random":
            reinitialize(model, model.expert)
        super().__init__(model, args, **kwargs)
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
        inputs = {**inputs, "distillation_weight": weight}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds lambda as it was at the last step."""
        if "loss" in logs and self.args.distillation_steps:
            logs["distillation_weight"] = self._applied_weight
        super().log(logs, start_time)

    def saved_parameters(self) -> Iterator[Tensor]:
        if adapters_in(self.model) is None:
            return super().saved_parameters()
        return iter(adapter_tensors(self.model).values())

    def card_values(self) -> dict[str, Any]:
        """With an adapter, the card is the adapter's."""
        return {**super().card_values(), "adapter": adapter_config(self.model)}


def _put_in(model: PriorVLAModel, peft_config: LoraConfig, args: VLATrainingArguments, run: dict[str, Any]) -> None:
    """The adapter into the model. Raises ValueError on what does not go together with one."""
    if adapters_in(model) is not None:
        raise ValueError("the model has an adapter already: merge it (merge_adapter), or load the base anew")
    for field, wanted in (("decoder", "reused"), ("load_best_model_at_end", False), ("fsdp", None)):
        if (value := getattr(args, field) or wanted) != wanted:
            raise ValueError(f"{field}={value!r} does not go together with peft_config: leave it out")
    if args.distillation_steps:
        raise ValueError(
            f"distillation_steps={args.distillation_steps} with peft_config: the trajectory encoder is no part of an "
            "adapter, so that nothing can be distilled from it: leave it out"
        )
    args.distillation_steps = 0
    names, kept = model.config.expert.embodiments, ids_alone(model, own_bodies(peft_config.modules_to_save))
    if left := [name for index, name in enumerate(names) if index not in kept]:
        raise ValueError(
            f"embodiment {left[0]!r} was added to the base and is not trained: name it in lora_config(embodiments=), "
            "or load the base anew"
        )
    base, revision = split_revision(run.get("base_model") or "")
    peft_config.revision = revision or peft_config.revision
    add_adapter(model, peft_config, base=base or None)
    for name in ("train_dataset", "eval_dataset"):
        if adapts_backbone(model) and getattr(run.get(name), "taps", None) is not None:
            raise ValueError(
                f"{name} holds features of the backbone as it was, and the adapter changes it: use "
                "LiveObservationDataset, or preset 'expert'"
            )


def distillation_steps(model: PriorVLAModel, args: VLATrainingArguments) -> int:
    """As asked for, or by default the paper's where there is something to distil from and into.

    Raises ValueError when it is asked for and there is not.
    """
    if args.distillation_steps is None:
        return DISTILLATION_STEPS if model.config.predicts_latent and model.encoder is not None else 0
    if args.distillation_steps and model.encoder is None and model.config.predicts_latent:
        raise ValueError(
            f"distillation_steps={args.distillation_steps} but the model has no trajectory encoder: start from an "
            "action prior (PriorVLAModel.from_action_prior), or set distillation_steps=0"
        )
    if args.distillation_steps and not model.config.predicts_latent:
        raise ValueError(
            f"distillation_steps={args.distillation_steps} but fusion={model.config.fusion!r} has no z' to align with "
            "the prior's latent: build the model with use_latent=True, or set distillation_steps=0"
        )
    return args.distillation_steps


def _require_a_gradient(model: PriorVLAModel, distillation_steps: int) -> None:
    """Insulated from the flow loss, a backbone that is trained has the alignment of z' alone."""
    config = model.config
    if config.backbone_training == "frozen" or not config.stop_gradient_into_backbone:
        return
    if not distillation_steps:
        raise ValueError(
            f"stop_gradient_into_backbone=True and distillation_steps=0 leave backbone_training="
            f"{config.backbone_training!r} without any gradient: distil, or let the flow loss reach the backbone"
        )
    print(f"the backbone is trained until step {distillation_steps}, while z' is aligned", file=sys.stderr)


def reinitialize(model: PriorVLAModel, part: nn.Module) -> None:
    """Draws fresh weights for one `part` of `model`."""
    flagged: list[Any] = [*part.modules(), *part.parameters()]
    for item in flagged:
        item._is_hf_initialized = False
    part.apply(model._init_weights)


__all__ = ["VLATrainer", "distillation_steps"]
