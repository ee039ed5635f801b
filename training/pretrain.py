"""`priorvla pretrain`: motion in, an action prior out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from transformers import AutoConfig, set_seed

from ..configuration.compatibility import compatibility_report, first_difference
from ..configuration.configuration_action_prior import ActionPriorConfig
from ..configuration.embodiment import Embodiment
from ..configuration.recipe import checked_fields
from ..hub_cards.checkpoints import kind_of
from ..modeling_priorvla.adding_embodiments import embodiment_index
from ..modeling_priorvla.modeling_action_prior import ActionPriorModel
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .action_prior_arguments import ActionPriorTrainingArguments
from .action_prior_trainer import ActionPriorTrainer
from .data.embodiment_fitting import LEARNING_KEYS
from .data.trajectory_dataset import TrajectoryDataset, expert_dims
from .motion_sources import Motion, StoredMotion, StreamedMotion
from .prior_quality import measure_prior
from .prior_report import write_prior_report
from .run_options import PriorOptions
from .runs import finish_run, training_arguments

# Of a body that joins a prior and is trained alone: its few thousand weights learn slowly at a whole prior's rate (our
# choice: after 150 steps a held-out loss of 0.27, against 0.41 at 3e-3).
NEW_BODY_LEARNING_RATE = 1e-2


def pretrain_action_prior(options: PriorOptions) -> ActionPriorTrainer:
    """Trains rung 1 and leaves model, processor, card, log, report and metrics in `options.output_dir`."""
    options.check()
    model_fields = checked_fields(ActionPriorConfig, options.model or {}, "model")
    ActionPriorConfig(**model_fields)  # a wrong value is refused before any data is read
    if options.prior is not None:
        _require_action_prior(options.prior)
    arguments = training_arguments(ActionPriorTrainingArguments, options)
    motion: Motion = (StreamedMotion if options.stream else StoredMotion)(options, arguments)
    set_seed(options.seed)
    model, embodiments = build_prior(options, model_fields, motion)
    given = options.training or {}
    if not all(parameter.requires_grad for parameter in model.parameters()) and "learning_rate" not in given:
        arguments.learning_rate = NEW_BODY_LEARNING_RATE
    chunk_size = model.config.expert.chunk_size
    held_out, comparison = motion.measured(embodiments, chunk_size)
    if options.holdout and (unmeasured := _unmeasured(held_out, comparison)):
        print(
            f"no episode of {', '.join(unmeasured)} is held out, so that the report will not speak of it: raise "
            f"--holdout {options.holdout}, or record more",
            file=sys.stderr,
        )
    trainer = ActionPriorTrainer(
        model,
        arguments,
        train_dataset=motion.windows(embodiments, chunk_size),
        eval_dataset=held_out,
        processor=PriorVLAProcessor(embodiments=embodiments, chunk_size=chunk_size),
        datasets=motion.names,
        base_model=options.prior,
    )
    trainer.train(resume_from_checkpoint=options.last_checkpoint() if options.resume else None, push=False)
    finish_run(trainer, report_on(trainer, held_out, comparison, options.seed) if held_out is not None else {})
    if trainer.is_world_process_zero():
        motion.close()
        print(
            f"\nThe action prior is in {options.output_dir}. "
            f"Next: priorvla info {options.output_dir}, or priorvla train --prior {options.output_dir} --dataset ...",
            file=sys.stderr,
        )
    return trainer


def build_prior(
    options: PriorOptions, fields: dict[str, Any], motion: Motion
) -> tuple[ActionPriorModel, list[Embodiment]]:
    """The model to train and its bodies: fresh for the bodies of `motion`, or `options.prior` and those it lacks.

    When a prior knows none of the bodies, only what belongs to them will be trained, unless `options.train_all`. What
    it knows of a body stays; that the data lie elsewhere than its statistics is printed.

    Raises ValueError when `options.embodiments` asks for something else to be learned of a body that it knows, and when
    `options.like` is a body that it does not know, or nothing is new.
    """
    if options.prior is None:
        embodiments = motion.fit(ActionPriorConfig(**fields).expert.chunk_size)
        expert = {**fields.get("expert", {}), **expert_dims(embodiments)}
        return ActionPriorModel(ActionPriorConfig(**{**fields, "expert": expert})), embodiments
    model = ActionPriorModel.from_pretrained(options.prior, **fields)
    if options.like is not None:
        embodiment_index(model.config.expert, options.like)  # refused before motion is read
    embodiments = PriorVLAProcessor.from_pretrained(options.prior).embodiments
    known = [embodiment.name for embodiment in embodiments]
    fitted = motion.fit(model.config.expert.chunk_size)
    new = [embodiment for embodiment in fitted if embodiment.name not in known]
    for body in fitted:
        if body.name in known:
            _compare(embodiments[known.index(body.name)], body, options)
    if options.like is not None and not new:
        names = ", ".join(body.name for body in fitted)
        raise ValueError(f"--like {options.like} is for new bodies, and {options.prior} knows {names}: leave it out")
    for body in new:
        model.add_embodiment(body.name, body.model_action_dim, body.model_state_dim, like=options.like)
    alone = len(new) == len(fitted) and not options.train_all
    if alone:
        model.train_only_embodiment(*(body.name for body in new))
    if new:
        names = ", ".join(body.name for body in new)
        print(f"new in {options.prior}: {names}; {'only they are' if alone else 'all is'} trained", file=sys.stderr)
    return model, [*embodiments, *new]


def _require_action_prior(prior: str) -> None:
    if (kind := kind_of(AutoConfig.from_pretrained(prior))) != "action-prior":
        told = "policy" if kind == "vla" else "vision-action prior"
        raise ValueError(f"--prior {prior} is a {told}: motion alone goes on from an action prior, name one")


def _compare(trained: Embodiment, fitted: Embodiment, options: PriorOptions) -> None:
    """Warns, or refuses, where the data of a known body are not what the prior was trained with."""
    asked = isinstance((options.embodiments or {}).get(fitted.name), Mapping)
    if asked and (difference := first_difference(trained, fitted, LEARNING_KEYS)) is not None:
        key, theirs, ours = difference
        raise ValueError(
            f"embodiments.{fitted.name}: it would have {key}={ours}, {options.prior} was trained with {theirs} and "
            "goes on with that: leave the field out, or give the body a new name"
        )
    report = compatibility_report(trained, fitted)
    if any(row.key != "cameras" for row in report.warnings):  # of which an action prior has no use
        print(report, file=sys.stderr)


def _unmeasured(held_out: TrajectoryDataset | None, training: TrajectoryDataset) -> list[str]:
    """Bodies that are trained on and have no held-out episode."""
    measured = set() if held_out is None else {held_out.store.bodies[body] for body in held_out.store.episodes.body}
    return [name for name in training.store.bodies if name not in measured]


def report_on(
    trainer: ActionPriorTrainer, held_out: TrajectoryDataset, comparison: TrajectoryDataset, seed: int
) -> dict[str, float]:
    """Measures the weights that will be saved, writes report.html and report.json, and returns the headline numbers.

    Sharded weights (FSDP) are only evaluated: one process, which measures, does not have them.
    """
    loss = trainer.evaluate(held_out)["eval_loss"]
    if not trainer.is_world_process_zero():
        return {}
    facts = {"held_out_windows": len(held_out), "eval_loss": loss}
    if trainer.is_fsdp_enabled:
        return facts
    with trainer.average.applied() if trainer.average is not None else nullcontext():
        quality = measure_prior(trainer.model, held_out, comparison, seed)
    write_prior_report(trainer.run_folder, quality, trainer.state.log_history)
    return {**facts, **quality.metrics()}


__all__ = ["pretrain_action_prior"]
