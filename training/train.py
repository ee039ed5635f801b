"""Rungs 2 and 3: demonstrations with images in, a vision-action prior or a policy that reads instructions out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from transformers import AutoConfig, set_seed

from ..configuration.backbone_reference import BACKBONE_KEYS
from ..configuration.configuration_expert import ExpertConfig
from ..configuration.configuration_priorvla import PriorVLAConfig
from ..configuration.embodiment import Embodiment
from ..configuration.expert_layout import Insertion
from ..configuration.recipe import checked_fields
from ..hub_cards.checkpoints import kind_of
from ..modeling_priorvla.backbone import describe_backbone, download_backbone
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from ..modeling_priorvla.packaged_backbones import PACKAGED_BACKBONES, packaged_backbone_folder
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .data.embodiment_fitting import share_of_episodes
from .data.live_observations import LiveObservationDataset
from .data.observation_dataset import ObservationDataset
from .data.trajectory import TrajectorySource
from .data.trajectory_dataset import (
    TrajectoryDataset,
    cameras_by_embodiment,
    expert_dims,
    fit_embodiments,
    split_episodes,
)
from .instruction_sampling import ModelSampler, draw_observations
from .language_sensitivity import language_sensitivity
from .run_options import FEATURES_FOLDER, ObservingOptions, VisionPriorOptions, VLAOptions, split_weight
from .runs import finish_run, load_sources, training_arguments
from .vision_action_prior_trainer import VisionActionPriorTrainer, VisionActionPriorTrainingArguments
from .vla_arguments import VLATrainingArguments
from .vla_trainer import VLATrainer

PRIOR_FUSION, POLICY_FUSION = "gated", "latent"  # where nothing else is asked for: paper B's host, and paper A's


def pretrain_vision_action_prior(options: VisionPriorOptions) -> VisionActionPriorTrainer:
    """Trains rung 2 and leaves model, processor, card, log, plot and metrics in `options.output_dir`."""
    options.check()
    arguments = training_arguments(VisionActionPriorTrainingArguments, options)
    run = _Run(options, PRIOR_FUSION, language=False)
    trainer = VisionActionPriorTrainer(run.model, arguments, **run.trainer_arguments(arguments.device))
    trainer.train(resume_from_checkpoint=run.last_checkpoint)
    finish_run(trainer, _losses(trainer.evaluate()) if run.held_out else {})
    print(
        f"\nThe vision-action prior is in {options.output_dir}. "
        f"Next: priorvla train --prior {options.output_dir} --dataset ...",
        file=sys.stderr,
    )
    return trainer


def train_vla(options: VLAOptions) -> VLATrainer:
    """Trains rung 3 and leaves model, processor, card, log, plot and metrics in `options.output_dir`.

    At its end it is measured whether the policy listens, on held-out episodes if there are any.
    """
    options.check()
    arguments = training_arguments(VLATrainingArguments, options, **_distillation(options))
    run = _Run(options, POLICY_FUSION, language=True)
    trainer = VLATrainer(run.model, arguments, **run.trainer_arguments(arguments.device))
    trainer.train(resume_from_checkpoint=run.last_checkpoint)
    metrics = _losses(trainer.evaluate()) if run.held_out else {}
    if options.listening and trainer.is_world_process_zero():
        metrics |= _listen(trainer, run, options)
    finish_run(trainer, metrics)
    print(f"\nThe policy is in {options.output_dir}. Next: priorvla evaluate {options.output_dir}", file=sys.stderr)
    return trainer


class _Run:
    """What both rungs prepare in the same way: data split, bodies, backbone, model and processor."""

    def __init__(self, options: ObservingOptions, fusion: str, language: bool) -> None:
        self.options = options
        fields = checked_fields(PriorVLAConfig, options.model or {}, "model")
        start = _Start.of(options.prior)
        self.sources, self.weights = load_sources(options.datasets, frames=True)
        parts = [split_episodes(source, options.holdout, options.seed) for source in self.sources]
        self.training, self.held_out = [part[0] for part in parts], [part[1] for part in parts if len(part[1])]
        if isinstance(options, VisionPriorOptions):
            self.training = [share_of_episodes(source, options.data_share, options.seed) for source in self.training]
        if start.embodiments is None:
            embodiments = fit_embodiments(self.training, _chunk_size(fields))
        else:
            embodiments = _with_cameras(start.embodiments, self.training)
        folder, reference = _find_backbone(options.backbone, options.backbone_dtype)
        fields = {**fields, **_backbone_fields(reference), "num_cameras": _most_cameras(embodiments)}
        set_seed(options.seed)
        self.model = _build_model(options, start, {**fields, "language": language}, embodiments, fusion)
        self.model.attach_backbone(folder)
        chunk_size = self.model.config.expert.chunk_size
        self.processor = PriorVLAProcessor.for_backbone(folder, embodiments, chunk_size=chunk_size)
        self.last_checkpoint = options.last_checkpoint() if options.resume else None

    def trainer_arguments(self, device: Any) -> dict[str, Any]:
        """What the Trainers of both rungs are given beside model and arguments."""
        self.model.to(device)  # it takes the backbone along, which encodes on that device
        return {
            "train_dataset": self._observations(self.training, self.weights),
            "eval_dataset": self._observations(self.held_out) if self.held_out else None,
            "processor": self.processor,
            "datasets": [split_weight(dataset)[0] for dataset in self.options.datasets],
            "base_model": None if self.options.control else self.options.prior,
        }

    def _observations(self, sources: list[TrajectorySource], weights: list[float] | None = None) -> Dataset:
        """Windows with cached features; with pixels, where features change or are continued from."""
        options, config = self.options, self.model.config
        windows = TrajectoryDataset(
            sources,
            self.processor.embodiments,
            config.expert.chunk_size,
            history_size=config.history_size if config.use_history else 0,
            stride=options.frame_stride,
            weights=weights,
        )
        if config.backbone_training != "frozen" or config.tail == "backbone":
            return LiveObservationDataset(windows, sources, self.processor, language=config.language)
        backbone = self.model.backbone
        assert backbone is not None
        cache_dir = options.cache_dir or options.output_dir / FEATURES_FOLDER
        cache = partial(ObservationDataset, taps=config.taps, language=config.language)
        return cache(windows, sources, backbone, self.processor, cache_dir, options.max_cache_gb)


@dataclass(frozen=True)
class _Start:
    """The checkpoint that a run starts from: what it is, and its bodies, whose statistics a reused expert needs."""

    kind: str | None = None
    embodiments: list[Embodiment] | None = None

    @classmethod
    def of(cls, prior: str | None) -> _Start:
        if prior is None:
            return cls()
        kind = kind_of(AutoConfig.from_pretrained(prior))
        if kind == "vla":
            raise ValueError(f"--prior {prior} is a policy, not a prior: name an action prior or a vision-action prior")
        return cls(kind, PriorVLAProcessor.from_pretrained(prior).embodiments)


def _build_model(
    options: ObservingOptions, start: _Start, fields: dict[str, Any], embodiments: list[Embodiment], fusion: str
) -> PriorVLAModel:
    """The run's model: from random weights, from a prior, or, as its control, as from a prior with random weights."""
    if start.kind is None:
        expert = {**fields.get("expert", {}), **expert_dims(embodiments)}
        return PriorVLAModel(PriorVLAConfig(**{**fields, "fusion": options.fusion or fusion, "expert": expert}))
    assert options.prior is not None
    if start.kind == "action-prior":
        model = PriorVLAModel.from_action_prior(options.prior, **{**fields, "fusion": options.fusion or fusion})
    else:
        model = _from_vision_action_prior(options, fields)
    if options.control:
        set_seed(options.seed)
        return PriorVLAModel(model.config)
    print(model.transfer_report, file=sys.stderr)
    return model


def _from_vision_action_prior(options: ObservingOptions, fields: dict[str, Any]) -> PriorVLAModel:
    prior = PriorVLAModel.from_pretrained(options.prior, backbone=None)
    if options.fusion not in (None, prior.config.fusion):
        raise ValueError(
            f"--fusion {options.fusion}: the host of the vision-action prior {options.prior} is "
            f"{prior.config.fusion!r}, and so is that of what comes of it: leave --fusion out"
        )
    if not fields.pop("language"):
        raise ValueError(f"--prior {options.prior} is a vision-action prior already: go on with priorvla train")
    reference = fields["backbone"]
    if (prior.config.backbone or {}).get("sha256") != reference["sha256"]:
        raise ValueError(
            f"--backbone {options.backbone}: the vision-action prior {options.prior} has learned to see with "
            f"{(prior.config.backbone or {}).get('name')!r}, whose weights these are not: use that one"
        )
    insertion: Insertion = options.insertion if isinstance(options, VLAOptions) else "after"  # type: ignore[assignment]
    return PriorVLAModel.from_vision_action_prior(prior, insertion=insertion, **fields)


def _chunk_size(model_fields: dict[str, Any]) -> int:
    """H of a policy that no prior gives its shape."""
    return ExpertConfig(**(model_fields.get("expert") or {})).chunk_size


def _most_cameras(embodiments: Sequence[Embodiment]) -> int:
    return max(1, *(len(embodiment.cameras) for embodiment in embodiments))


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
    """The folder of a backbone and what `describe_backbone` says of it."""
    if name in PACKAGED_BACKBONES:
        folder = packaged_backbone_folder(name)
        return folder, describe_backbone(folder, source="package", name=name, dtype=dtype)
    folder = Path(name)
    if folder.is_dir():  # a local copy: the config names it by its last component, never by this machine's path
        return folder, describe_backbone(folder, source="hub", name=folder.resolve().name, dtype=dtype)
    folder = download_backbone(name)
    return folder, describe_backbone(folder, source="hub", name=name, dtype=dtype)


def _backbone_fields(reference: dict[str, Any]) -> dict[str, Any]:
    """What a config says of its backbone."""
    return {
        "backbone": {key: reference[key] for key in BACKBONE_KEYS},
        "backbone_layers": reference["num_layers"],
        "vision_hidden_size": reference["vision_hidden_size"],
        "text_hidden_size": reference["text_hidden_size"],
    }


def _listen(trainer: VLATrainer, run: _Run, options: VLAOptions) -> dict[str, float]:
    """Measures and prints whether the policy listens."""
    observations = draw_observations(run.held_out or run.training, run.processor, options.listening, options.seed)
    with trainer.average.applied() if trainer.average is not None else nullcontext():
        measured = language_sensitivity(ModelSampler(trainer.model, run.processor), observations, seed=options.seed)
    print(f"\n{measured.describe()}", file=sys.stderr)
    return measured.metrics()


def _losses(metrics: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_loss")}


__all__ = ["pretrain_vision_action_prior", "train_vla"]
