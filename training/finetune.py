"""A new robot for a published policy: a few demonstrations in, an adapter of a few megabytes out."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, set_seed

from ..configuration.adapter_files import ADAPTER_CONFIG_FILE
from ..hub_cards.checkpoints import kind_of, split_revision
from ..hub_cards.published_base import published_base
from ..modeling_priorvla.adapter_places import adapter_place, commit_of
from ..modeling_priorvla.modeling_priorvla import PriorVLAModel
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .adapter_presets import lora_config
from .component_weights import component_weights
from .data.embodiment_fitting import fit_embodiments, split_episodes
from .data.trajectory import TrajectorySource
from .finetune_options import ADAPTER_PRESETS, FinetuneOptions
from .listening_after_training import listening_metrics
from .observed_windows import observed_windows
from .run_options import FEATURES_FOLDER, split_weight
from .runs import finish_run, first_look, load_sources, training_arguments
from .vla_arguments import VLATrainingArguments
from .vla_trainer import VLATrainer

# Our choice, not measured: what is usual for LoRA; 1e-5 is paper B's for what a backbone is trained with for long.
ADAPTER_DEFAULTS: Mapping[str, Any] = {"distillation_steps": 0, "backbone_learning_rate": 1e-4}
WHOLE_DEFAULTS: Mapping[str, Any] = {"distillation_steps": 0}


def finetune(options: FinetuneOptions) -> VLATrainer:
    """Trains a robot's adapter, or whole weights, and leaves it with processor, card, log and metrics in `output_dir`.

    Features are cached where the backbone stays as it is, images go through it at every step where it does not. At the
    end it is measured whether the policy listens, if it was given more than one instruction.

    Raises:
        ValueError: when the base is no policy, is an adapter itself, has no slots for as many cameras, or cannot be
            found by others although the adapter is to be pushed; and as `lora_config`, `fit_embodiments`, `VLATrainer`.
    """
    options.check()
    adapted = options.preset in ADAPTER_PRESETS
    defaults = ADAPTER_DEFAULTS if adapted else WHOLE_DEFAULTS
    arguments = training_arguments(
        VLATrainingArguments, replace(options, training={**defaults, **(options.training or {})})
    )
    base = _Base.of(options)
    base.require_policy()
    if adapted and arguments.push_to_hub:
        published_base(base.name, None)  # refused before images are encoded
    sources, weights = load_sources(options.datasets, frames=True)
    parts = [split_episodes(named(source, options.embodiment), options.holdout, options.seed) for source in sources]
    training, held_out = [part[0] for part in parts], [part[1] for part in parts if len(part[1])]
    set_seed(options.seed)
    model = _load(base, options)
    processor, robots = _meet(model, PriorVLAProcessor.from_pretrained(base.name, **base.hub), training, options)
    if arguments.loss_weights is not None:
        component_weights(processor.embodiments, arguments.loss_weights)  # refused before images are encoded
    peft_config = None
    if adapted:
        peft_config = lora_config(
            model, options.preset, robots, rank=options.rank, alpha=options.alpha, **(options.lora or {})
        )
    model.to(arguments.device)  # type: ignore[arg-type]  # the backbone, which encodes there, goes along
    trainer = VLATrainer(
        model,
        arguments,
        peft_config=peft_config,
        train_dataset=_observations(model, processor, training, options, weights),
        eval_dataset=_observations(model, processor, held_out, options) if held_out else None,
        processor=processor,
        datasets=[split_weight(dataset)[0] for dataset in options.datasets],
        base_model=str(base),
    )
    trainer.train(resume_from_checkpoint=options.last_checkpoint() if options.resume else None, push=False)
    evaluated = trainer.evaluate() if held_out else {}
    metrics = {key.removeprefix("eval_"): evaluated[key] for key in evaluated if key.startswith("eval_loss")}
    metrics |= listening_metrics(trainer, training, held_out, options.listening, options.seed)
    finish_run(trainer, metrics, held_out)
    if trainer.is_world_process_zero():
        what = "adapter" if adapted else "policy"
        look = first_look(options.output_dir, options.datasets[0], options.embodiment, options.backbone)
        print(f"\nThe {what} for {', '.join(robots)} is in {options.output_dir}. Next: {look}", file=sys.stderr)
    return trainer


def named(source: TrajectorySource, name: str | None) -> TrajectorySource:
    """`source` as recorded by the robot `name`; None leaves it as it is."""
    if name is None:
        return source
    return TrajectorySource(source.root, source.fingerprint, replace(source.embodiment, name=name), source.trajectories)


@dataclass(frozen=True)
class _Base:
    """The policy that a run starts from: a folder, or a repository at one commit, whatever happens to it meanwhile."""

    name: str
    commit: str | None

    @classmethod
    def of(cls, options: FinetuneOptions) -> _Base:
        """A run that is resumed goes on with the base that it began with."""
        assert options.base is not None  # checked
        if Path(options.base).is_dir():
            return cls(options.base, None)
        name, revision = split_revision(options.base)
        if options.resume and revision is None:
            began = Path(options.last_checkpoint() or "") / ADAPTER_CONFIG_FILE
            revision = json.loads(began.read_text(encoding="utf-8"))["revision"] if began.is_file() else None
        try:
            return cls(name, commit_of(name, revision=revision))
        except OSError as error:
            raise type(error)(f"--base {options.base} cannot be loaded: {error}") from error

    @property
    def hub(self) -> dict[str, str]:
        """Arguments of `from_pretrained`."""
        return {} if self.commit is None else {"revision": self.commit}

    def require_policy(self) -> None:
        if adapter_place(self.name, dict(self.hub)) is not None:
            raise ValueError(
                f"--base {self.name} is an adapter: name its base, or merge it (merge_adapter) and save that"
            )
        if (kind := kind_of(AutoConfig.from_pretrained(self.name, **self.hub))) != "vla":
            raise ValueError(f"--base {self.name} is no policy but a prior ({kind}): train one first: priorvla train")

    def __str__(self) -> str:
        return self.name if self.commit is None else f"{self.name}@{self.commit}"


def _load(base: _Base, options: FinetuneOptions) -> PriorVLAModel:
    """The base with its backbone, and gradients where the preset wants them."""
    whole_backbone = options.preset == "full"
    model: PriorVLAModel = PriorVLAModel.from_pretrained(
        base.name,
        backbone=None if whole_backbone else options.backbone,
        backbone_quantization=None if whole_backbone else options.backbone_quantization or "auto",
        dtype=torch.float32,
        **base.hub,
    )
    if model.config.backbone_training == "lora":
        raise ValueError(
            f"--base {options.base} has adapters in its backbone (backbone_training='lora'), beside which a robot's "
            "would be mixed up with them: start from a policy that was trained with 'frozen' or 'full'"
        )
    if whole_backbone:
        model.config.backbone_training = "full"
        _train_in_float32(model, options)
        model.attach_backbone(None if options.backbone == "auto" else options.backbone)
    elif model.backbone is not None:
        model.backbone.requires_grad_(False)
    return model


def _train_in_float32(model: PriorVLAModel, options: FinetuneOptions) -> None:
    """Small steps vanish in fewer bits. The new policy's backbone is float32 from then on, as its checkpoint says."""
    reference = model.config.backbone
    if reference is None or (dtype := reference.get("dtype")) == "float32":
        return
    before = dtype or "its own dtype"
    print(
        f"--preset full: the backbone is trained and saved in float32, {options.base} has it in {before}",
        file=sys.stderr,
    )
    model.config.backbone = {**reference, "dtype": "float32"}


def _meet(
    model: PriorVLAModel, processor: PriorVLAProcessor, training: list[TrajectorySource], options: FinetuneOptions
) -> tuple[PriorVLAProcessor, list[str]]:
    """Adds the robots that the base does not know, with statistics of the new data alone; all robots' names."""
    bodies = processor.embodiments
    known = [body.name for body in bodies]
    fitted = fit_embodiments(training, model.config.expert.chunk_size)
    for robot in fitted:
        if len(robot.cameras) > model.config.num_cameras:
            raise ValueError(
                f"embodiment {robot.name!r} has {len(robot.cameras)} cameras ({', '.join(robot.cameras)}), the base "
                f"{options.base} has slots for {model.config.num_cameras}: write the dataset with the cameras that "
                "tell the most"
            )
    new = [robot for robot in fitted if robot.name not in known]
    if options.like is not None and not new:
        raise ValueError(
            f"--like {options.like} is for a new robot, and the base {options.base} knows {fitted[0].name!r}: leave it "
            "out, or give another --embodiment"
        )
    for robot in new:
        model.add_embodiment(robot.name, robot.model_action_dim, robot.model_state_dim, like=options.like)
        print(f"new for {options.base}: {robot.name}", file=sys.stderr)
    return processor.with_embodiments([*bodies, *new]), [robot.name for robot in fitted]


def _observations(
    model: PriorVLAModel,
    processor: PriorVLAProcessor,
    sources: list[TrajectorySource],
    options: FinetuneOptions,
    weights: list[float] | None = None,
) -> Dataset:
    return observed_windows(
        model,
        processor,
        sources,
        options.cache_dir or options.output_dir / FEATURES_FOLDER,
        max_cache_gb=options.max_cache_gb,
        stride=options.frame_stride,
        weights=weights,
        adapted=options.preset in ("backbone", "all"),
    )


__all__ = ["finetune", "named"]
