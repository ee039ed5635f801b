"""`priorvla train`: demonstrations with images and instructions in, a vision-language-action policy out."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import set_seed

from ..configuration.backbone_reference import BACKBONE_KEYS
from ..configuration.configuration_expert import ExpertConfig
from ..configuration.configuration_priorvla import PriorVLAConfig
from ..configuration.embodiment import Embodiment
from ..configuration.recipe import checked_fields
from ..modeling_priorvla.backbone import DualEncoderBackbone, describe_backbone, download_backbone, load_backbone
from ..modeling_priorvla.modeling_action_prior import ActionPriorModel
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel, inherited_fields
from ..modeling_priorvla.packaged_backbones import PACKAGED_BACKBONES, packaged_backbone_folder
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .data.observation_dataset import ObservationDataset
from .data.trajectory import TrajectorySource
from .data.trajectory_dataset import (
    TrajectoryDataset,
    cameras_by_embodiment,
    expert_dims,
    fit_embodiments,
    split_episodes,
)
from .run_options import FEATURES_FOLDER, VLAOptions, split_weight
from .runs import finish_run, load_sources, training_arguments
from .vla_arguments import VLATrainingArguments
from .vla_trainer import VLATrainer


def train_vla(options: VLAOptions) -> VLATrainer:
    """Trains rung 3 and leaves model, processor, card, log, plot and metrics in `options.output_dir`."""
    options.check()
    model_fields = checked_fields(PriorVLAConfig, options.model or {}, "model")
    arguments = training_arguments(VLATrainingArguments, options, **_distillation(options))
    prior, embodiments = _load_prior(options.prior)
    sources, weights = load_sources(options.datasets, frames=True)
    parts = [split_episodes(source, options.holdout, options.seed) for source in sources]
    training, held_out = [part[0] for part in parts], [part[1] for part in parts if len(part[1])]
    if embodiments is None:
        embodiments = fit_embodiments(training, _chunk_size(model_fields))
    else:
        embodiments = _with_cameras(embodiments, training)
    folder, reference = _find_backbone(options.backbone, options.backbone_dtype)
    set_seed(options.seed)
    model = _build_model(options, model_fields, prior, embodiments, reference)
    processor = PriorVLAProcessor.for_backbone(folder, embodiments, chunk_size=model.config.expert.chunk_size)
    backbone = load_backbone(model.config.backbone, folder).to(arguments.device)
    observe = partial(_observations, options, model.config, embodiments, backbone, processor)
    trainer = VLATrainer(
        model,
        arguments,
        train_dataset=observe(training, weights),
        eval_dataset=observe(held_out) if held_out else None,
        processor=processor,
        datasets=[split_weight(dataset)[0] for dataset in options.datasets],
        base_model=None if options.control else options.prior,
    )
    trainer.train(resume_from_checkpoint=options.last_checkpoint() if options.resume else None)
    finish_run(trainer, _losses(trainer.evaluate()) if held_out else {})
    print(f"\nThe policy is in {options.output_dir}. Next: priorvla evaluate {options.output_dir}", file=sys.stderr)
    return trainer


def _chunk_size(model_fields: dict[str, Any]) -> int:
    """H of a policy that no prior gives its shape."""
    return ExpertConfig(**(model_fields.get("expert") or {})).chunk_size


def _load_prior(prior: str | None) -> tuple[ActionPriorModel | None, list[Embodiment] | None]:
    """The prior and its embodiments: a reused expert needs the statistics that it was trained with."""
    if prior is None:
        return None, None
    return ActionPriorModel.from_pretrained(prior), PriorVLAProcessor.from_pretrained(prior).embodiments


def _with_cameras(embodiments: list[Embodiment], sources: list[TrajectorySource]) -> list[Embodiment]:
    """The prior's embodiments with the cameras of the demonstrations: motion may have been recorded without any."""
    cameras = cameras_by_embodiment(sources)
    return [replace(embodiment, cameras=cameras.get(embodiment.name, embodiment.cameras)) for embodiment in embodiments]


def _distillation(options: VLAOptions) -> dict[str, int]:
    """Nothing is distilled from an encoder that was never trained; says so when the recipe asks for it."""
    if options.prior is not None and not options.control:
        return {}
    asked = (options.training or {}).get("distillation_steps", 0)
    if asked:
        print(
            f"distillation_steps={asked} is not used: this run does not start from a prior's weights", file=sys.stderr
        )
    return {"distillation_steps": 0}


def _find_backbone(name: str, dtype: str | None) -> tuple[Path, dict[str, Any]]:
    """The folder of a backbone and the reference to it that goes into the config."""
    if name in PACKAGED_BACKBONES:
        folder = packaged_backbone_folder(name)
        return folder, describe_backbone(folder, source="package", name=name, dtype=dtype)
    folder = Path(name)
    if folder.is_dir():  # a local copy: the config names it by its last component, never by this machine's path
        return folder, describe_backbone(folder, source="hub", name=folder.resolve().name, dtype=dtype)
    folder = download_backbone(name)
    return folder, describe_backbone(folder, source="hub", name=name, dtype=dtype)


def _build_model(
    options: VLAOptions,
    fields: dict[str, Any],
    prior: ActionPriorModel | None,
    embodiments: list[Embodiment],
    reference: dict[str, Any],
) -> PriorVLAModel:
    fields = {
        **fields,
        "backbone": {key: reference[key] for key in BACKBONE_KEYS},
        "vision_hidden_size": reference["vision_hidden_size"],
        "text_hidden_size": reference["text_hidden_size"],
        "fusion_transformer": {
            **fields.get("fusion_transformer", {}),
            "num_cameras": max(1, *(len(embodiment.cameras) for embodiment in embodiments)),
        },
    }
    if prior is None:
        expert = {**fields.get("expert", {}), **expert_dims(embodiments)}
        return PriorVLAModel(PriorVLAConfig(**{**fields, "expert": expert}))
    if options.control:
        return PriorVLAModel(PriorVLAConfig(**{**inherited_fields(prior.config), **fields}))
    model = PriorVLAModel.from_action_prior(prior, **fields)
    print(model.transfer_report, file=sys.stderr)
    return model


def _observations(
    options: VLAOptions,
    config: PriorVLAConfig,
    embodiments: list[Embodiment],
    backbone: DualEncoderBackbone,
    processor: PriorVLAProcessor,
    sources: list[TrajectorySource],
    weights: list[float] | None = None,
) -> ObservationDataset:
    windows = TrajectoryDataset(
        sources,
        embodiments,
        config.expert.chunk_size,
        history_size=config.history_size if config.use_history else 0,
        stride=options.frame_stride,
        weights=weights,
    )
    cache_dir = options.cache_dir or options.output_dir / FEATURES_FOLDER
    return ObservationDataset(windows, sources, backbone, processor, cache_dir, options.max_cache_gb)


def _losses(metrics: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_loss")}


__all__ = ["train_vla"]
