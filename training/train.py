"""Rungs 2 and 3: demonstrations with images in, a vision-action prior or a policy that reads instructions out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from torch.utils.data import Dataset
from transformers import AutoConfig, set_seed

from ..configuration.backbone_reference import fields_for_backbone
from ..configuration.configuration_expert import ExpertConfig
from ..configuration.configuration_priorvla import PriorVLAConfig
from ..configuration.embodiment import Embodiment
from ..configuration.expert_layout import Insertion, layers_read, taps_given
from ..configuration.recipe import checked_fields
from ..hub_cards.checkpoints import kind_of
from ..modeling_priorvla.backbone import describe_backbone, download_backbone, used_before
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from ..modeling_priorvla.packaged_backbones import PACKAGED_BACKBONES, packaged_backbone_folder
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .component_weights import component_weights
from .data.embodiment_fitting import share_of_episodes
from .data.trajectory import TrajectorySource
from .data.trajectory_dataset import (
    cameras_by_embodiment,
    expert_dims,
    fit_embodiments,
    split_episodes,
)
from .listening_after_training import listening_metrics
from .observed_windows import observed_windows
from .observing_arguments import ObservingTrainingArguments
from .run_options import (
    FEATURES_FOLDER,
    POLICY_FUSION,
    PRIOR_FUSION,
    ObservingOptions,
    VisionPriorOptions,
    VLAOptions,
    split_weight,
)
from .runs import finish_run, first_look, load_sources, training_arguments
from .vision_action_prior_trainer import VisionActionPriorTrainer, VisionActionPriorTrainingArguments
from .vla_arguments import VLATrainingArguments
from .vla_trainer import VLATrainer, distillation_steps

BACKBONE_OPTIONS = {  # options of how the backbone is used -> keys of its reference
    "backbone_dtype": "dtype",
    "backbone_quantization": "quantization",
    "image_size": "image_size",
    "image_tokens": "tokens_per_image",
    "prompt": "prompt",
}
CHOSEN = ("backbone_layers", "image_grid", "normalize_features")  # how a backbone is read; a recipe has the last word
RESUMED = (
    *("fusion", "language", "gate", "use_latent", "use_history", "history_size", "tail", "stop_gradient_into_backbone"),
    *("time_distribution", "time_alpha", "time_beta", "prefix_probability", "max_prefix_length"),
    *("backbone", "backbone_layers", "image_grid", "normalize_features", "backbone_training", "lora"),
)


def pretrain_vision_action_prior(options: VisionPriorOptions) -> VisionActionPriorTrainer:
    """Trains rung 2 and leaves model, processor, card, log, plot and metrics in `options.output_dir`."""
    options.check()
    arguments = training_arguments(VisionActionPriorTrainingArguments, options)
    run = _Run(options, PRIOR_FUSION, language=False)
    trainer = VisionActionPriorTrainer(run.model, arguments, **run.trainer_arguments(arguments))
    trainer.train(resume_from_checkpoint=run.last_checkpoint, push=False)
    finish_run(trainer, _losses(trainer.evaluate()) if run.held_out else {}, run.held_out)
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
    distillation_steps(run.model, arguments)  # refused before images are encoded
    trainer = VLATrainer(run.model, arguments, **run.trainer_arguments(arguments))
    trainer.train(resume_from_checkpoint=run.last_checkpoint, push=False)
    metrics = _losses(trainer.evaluate()) if run.held_out else {}
    metrics |= listening_metrics(trainer, run.training, run.held_out, options.listening, options.seed)
    finish_run(trainer, metrics, run.held_out)
    look = first_look(options.output_dir, options.datasets[0], backbone=options.backbone)
    print(f"\nThe policy is in {options.output_dir}. Next: {look}", file=sys.stderr)
    return trainer


class _Run:
    """What both rungs prepare in the same way: data split, bodies, backbone, model and processor."""

    def __init__(self, options: ObservingOptions, fusion: str, language: bool) -> None:
        self.options = options
        fields = checked_fields(PriorVLAConfig, options.model or {}, "model")
        start = _Start.of(options)
        fields = {**fields, "language": language}
        early = {
            name: value for name, value in fields.items() if name != "use_history"
        }  # it may need a prior's encoder
        fusion, taps = options.fusion or fusion, taps_given(fields)
        deep_enough = {"backbone_layers": layers_read(1, fusion, taps)} if taps else {}
        # a wrong value is refused before data are read
        PriorVLAConfig(**{"fusion": fusion, **deep_enough, **early})
        self.sources, self.weights = load_sources(options.datasets, frames=True)
        folder, reference = _find_backbone(options, start)
        parts = [split_episodes(source, options.holdout, options.seed) for source in self.sources]
        self.training, self.held_out = [part[0] for part in parts], [part[1] for part in parts if len(part[1])]
        if isinstance(options, VisionPriorOptions):
            self.training = [share_of_episodes(source, options.data_share, options.seed) for source in self.training]
        if start.embodiments is None:
            embodiments = fit_embodiments(self.training, _chunk_size(fields))
        elif start.kind == "action-prior":
            embodiments = _with_cameras(start.embodiments, self.training)
        else:
            embodiments = start.embodiments  # it has learned to see with these cameras, in this order
        set_seed(options.seed)
        if start.kind == "vision-action-prior":
            _require_same_backbone(options, start, reference)
            self.model = _from_vision_action_prior(options, fields)
        else:
            read: dict[str, Any] = _as_it_began(options) if options.resume else {}
            read |= {name: fields[name] for name in CHOSEN if name in fields}
            fields |= {**fields_for_backbone(reference, fusion, taps), **read}
            fields["num_cameras"] = max(fields.get("num_cameras", 1), _most_cameras(embodiments))
            self.model = _build_model(options, start, fields, embodiments, fusion)
        if options.resume:
            _require_same_model(options, self.model.config)
        self.model.attach_backbone(folder)
        chunk_size = self.model.config.expert.chunk_size
        self.processor = PriorVLAProcessor.for_backbone(
            folder,
            embodiments,
            chunk_size=chunk_size,
            image_size=tuple(reference["image_size"]),
            prompt=reference["prompt"],
        )
        self.last_checkpoint = options.last_checkpoint() if options.resume else None

    def trainer_arguments(self, arguments: ObservingTrainingArguments) -> dict[str, Any]:
        """What the Trainers of both rungs are given beside model and arguments."""
        if arguments.loss_weights is not None:
            component_weights(self.processor.embodiments, arguments.loss_weights)  # refused before images are encoded
        self.model.to(arguments.device)  # type: ignore[arg-type]  # the backbone, which encodes there, goes along
        return {
            "train_dataset": self._observations(self.training, self.weights),
            "eval_dataset": self._observations(self.held_out) if self.held_out else None,
            "processor": self.processor,
            "datasets": [split_weight(dataset)[0] for dataset in self.options.datasets],
            "base_model": None if self.options.control else self.options.prior,
        }

    def _observations(self, sources: list[TrajectorySource], weights: list[float] | None = None) -> Dataset:
        options = self.options
        return observed_windows(
            self.model,
            self.processor,
            sources,
            options.cache_dir or options.output_dir / FEATURES_FOLDER,
            max_cache_gb=options.max_cache_gb,
            stride=options.frame_stride,
            weights=weights,
        )


@dataclass(frozen=True)
class _Start:
    """The checkpoint that a run starts from: what it is, its config, its bodies, whose statistics an expert needs."""

    kind: str | None = None
    config: Any = None
    embodiments: list[Embodiment] | None = None

    @classmethod
    def of(cls, options: ObservingOptions) -> _Start:
        prior = options.prior
        kind: str | None = None
        config: Any = None
        if prior is not None:
            config = AutoConfig.from_pretrained(prior)
            kind = kind_of(config)
        if kind == "vla":
            raise ValueError(f"--prior {prior} is a policy, not a prior: name an action prior or a vision-action prior")
        if kind == "vision-action-prior" and not isinstance(options, VLAOptions):
            raise ValueError(f"--prior {prior} is a vision-action prior already: go on with priorvla train")
        if kind == "vision-action-prior" and options.fusion not in (None, config.fusion):
            raise ValueError(
                f"--fusion {options.fusion}: the host of the vision-action prior {prior} is {config.fusion!r}, and so "
                "is that of what comes of it: leave --fusion out"
            )
        if isinstance(options, VLAOptions) and options.insertion is not None and kind != "vision-action-prior":
            raise ValueError(
                f"--insertion {options.insertion} says where new layers stand beside those of a vision-action prior: "
                "name one with --prior, or leave it out"
            )
        return cls(kind, config, None if prior is None else PriorVLAProcessor.from_pretrained(prior).embodiments)

    @property
    def backbone(self) -> dict[str, Any]:
        """The backbone that a vision-action prior has learned to see with."""
        return getattr(self.config, "backbone", None) or {}


def _build_model(
    options: ObservingOptions, start: _Start, fields: dict[str, Any], embodiments: list[Embodiment], fusion: str
) -> PriorVLAModel:
    """From random weights, from an action prior, or, as its control, as from an action prior with random weights."""
    fields = {**fields, "fusion": options.fusion or fusion}
    if options.prior is None:
        expert = {**fields.get("expert", {}), **expert_dims(embodiments)}
        return PriorVLAModel(PriorVLAConfig(**{**fields, "expert": expert}))
    return _or_control(options, PriorVLAModel.from_action_prior(options.prior, **fields))


def _from_vision_action_prior(options: ObservingOptions, fields: dict[str, Any]) -> PriorVLAModel:
    """The policy that begins as its prior, or its control; cameras, backbone and shape are the prior's."""
    assert isinstance(options, VLAOptions) and options.prior is not None
    own = {name: value for name, value in fields.items() if name != "language"}
    insertion = cast(Insertion, options.insertion or "after")
    return _or_control(options, PriorVLAModel.from_vision_action_prior(options.prior, insertion=insertion, **own))


def _or_control(options: ObservingOptions, model: PriorVLAModel) -> PriorVLAModel:
    if options.control:
        set_seed(options.seed)
        return PriorVLAModel(model.config)
    print(model.transfer_report, file=sys.stderr)
    return model


def _require_same_backbone(options: ObservingOptions, start: _Start, reference: dict[str, Any]) -> None:
    own = start.backbone
    if own.get("sha256") != reference["sha256"]:
        raise ValueError(
            f"--backbone {options.backbone}: the vision-action prior {options.prior} has learned to see with "
            f"{own.get('name')!r}, whose weights these are not: use that one"
        )
    if own.get("around_images") not in (None, reference["around_images"]):
        raise ValueError(
            f"--backbone {options.backbone}: what stands around images there is {reference['around_images']}, the "
            f"vision-action prior {options.prior} has learned to see with {own['around_images']}: use its chat template"
        )
    for option, name in BACKBONE_OPTIONS.items():
        known = name in own or getattr(options, option) is not None  # older checkpoints do not say everything
        if known and own.get(name) != reference[name]:
            raise ValueError(
                f"--{option.replace('_', '-')} {getattr(options, option)}: the vision-action prior {options.prior} has "
                f"learned to see with {_told(own.get(name))}: leave it out"
            )


def _as_it_began(options: ObservingOptions) -> dict[str, Any]:
    """How the run that is resumed reads its backbone: older releases had other defaults."""
    began = AutoConfig.from_pretrained(str(options.last_checkpoint()))
    return {name: getattr(began, name) for name in CHOSEN}


def _require_same_model(options: ObservingOptions, config: PriorVLAConfig) -> None:
    """A run that is resumed goes on with the model that it began with: equal tensors' names do not make it the same."""
    began = AutoConfig.from_pretrained(str(options.last_checkpoint())).to_dict()
    now = config.to_dict()
    began, now = ({**fields, **fields["expert"]} for fields in (began, now))
    for name in (*RESUMED, "expert_layers", "tap_layers"):
        if _known(began, name) != _known(now, name, began):
            raise ValueError(
                f"--resume: the run in {options.output_dir} began with {name}={began.get(name)}, now it would be "
                f"{now.get(name)}: resume it with the same options"
            )


def _known(config: dict[str, Any], name: str, as_of: dict[str, Any] | None = None) -> Any:
    """A field of a config; of its backbone what the config `as_of`, by default itself, says of one.

    Older checkpoints do not say everything.
    """
    value = config.get(name)
    said = ((as_of or config).get(name) or {}) if name == "backbone" else {}
    return {key: (value or {}).get(key) for key in said} if said else value


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


def _told(setting: Any) -> str:
    return "what its backbone has itself" if setting is None else str(setting)


def _find_backbone(options: ObservingOptions, start: _Start) -> tuple[Path, dict[str, Any]]:
    """The folder of a backbone and what `describe_backbone` says of it, used as the options say, else as the prior has
    learned to see with it."""
    name = options.backbone
    if name in PACKAGED_BACKBONES:
        folder, source = packaged_backbone_folder(name), "package"
    elif Path(name).is_dir():  # a local copy: the config names it by its last component, never by this machine's path
        folder, source, name = Path(name), "hub", Path(name).resolve().name
    else:
        folder, source = download_backbone(name), "hub"
    asked = {key: getattr(options, option) for option, key in BACKBONE_OPTIONS.items()}
    if options.image_size is not None:
        asked["image_size"] = (options.image_size, options.image_size)
    before = used_before(start.backbone, folder)
    settings = {key: before[key] if value is None else value for key, value in asked.items()}
    return folder, describe_backbone(folder, source=source, name=name, **settings)


def _losses(metrics: dict[str, float]) -> dict[str, float]:
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_loss")}


__all__ = ["pretrain_vision_action_prior", "train_vla"]
