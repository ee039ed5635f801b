"""`priorvla pretrain`: motion in, an action prior out."""

from __future__ import annotations

import sys
from contextlib import nullcontext

import torch
from transformers import set_seed

from ..configuration.configuration_action_prior import ActionPriorConfig
from ..configuration.recipe import checked_fields
from ..modeling_priorvla.modeling_action_prior import ActionPriorModel
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .action_prior_arguments import ActionPriorTrainingArguments
from .action_prior_trainer import ActionPriorTrainer
from .data.trajectory_dataset import TrajectoryDataset, expert_dims, fit_embodiments, split_episodes
from .run_options import RunOptions
from .runs import finish_run, load_sources, training_arguments

EVALUATED_WINDOWS = 2048


def pretrain_action_prior(options: RunOptions) -> ActionPriorTrainer:
    """Trains rung 1 and leaves model, processor, card, log, plot and metrics in `options.output_dir`."""
    options.check()
    model_fields = checked_fields(ActionPriorConfig, options.model or {}, "model")
    arguments = training_arguments(ActionPriorTrainingArguments, options)
    sources, weights = load_sources(options.datasets)
    parts = [split_episodes(source, options.holdout, options.seed) for source in sources]
    training, held_out = [part[0] for part in parts], [part[1] for part in parts if len(part[1])]
    embodiments = fit_embodiments(training)
    expert = {**model_fields.pop("expert", {}), **expert_dims(embodiments)}
    set_seed(options.seed)
    model = ActionPriorModel(ActionPriorConfig(expert=expert, **model_fields))
    chunk_size = model.config.expert.chunk_size
    evaluation = TrajectoryDataset(held_out, embodiments, chunk_size) if held_out else None
    trainer = ActionPriorTrainer(
        model,
        arguments,
        train_dataset=TrajectoryDataset(training, embodiments, chunk_size, weights=weights),
        eval_dataset=evaluation,
        processor=PriorVLAProcessor(embodiments=embodiments, chunk_size=chunk_size),
        datasets=[str(source.root) for source in sources],
    )
    trainer.train(resume_from_checkpoint=options.last_checkpoint() if options.resume else None)
    finish_run(trainer, prior_metrics(trainer, evaluation) if evaluation is not None else {})
    print(
        f"\nThe action prior is in {options.output_dir}. "
        f"Next: priorvla train --prior {options.output_dir} --dataset ...",
        file=sys.stderr,
    )
    return trainer


def prior_metrics(trainer: ActionPriorTrainer, dataset: TrajectoryDataset) -> dict[str, float]:
    """On the held-out `dataset`: velocity loss, and the mean absolute error of reconstructions in raw action units.

    `reconstruction_error` samples chunks from their own latents; `mean_chunk_error` is that of always answering the
    mean held-out chunk, so that the first has something to be compared with.
    """
    metrics = trainer.evaluate(dataset)
    with trainer.average.applied() if trainer.average is not None else nullcontext():  # what will be saved
        reconstruction = reconstruction_errors(trainer, dataset)
    return {"held_out_windows": len(dataset), "velocity_loss": metrics["eval_loss"], **reconstruction}


@torch.no_grad()
def reconstruction_errors(trainer: ActionPriorTrainer, dataset: TrajectoryDataset) -> dict[str, float]:
    """Both errors of `prior_metrics` with the trainer's current weights, by embodiment."""
    model = trainer.model.eval()
    generator = torch.Generator().manual_seed(trainer.args.seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:EVALUATED_WINDOWS].tolist()
    batch = {key: value.to(model.device) for key, value in dataset.__getitems__(chosen).items()}
    ids, mask, actions = batch["embodiment_ids"], batch["action_mask"], batch["actions"]
    noise = torch.randn(actions.shape, generator=generator).to(model.device)
    sampled = model.reconstruct(batch["states"], actions, ids, mask, noise=noise)
    result = {}
    for index, embodiment in enumerate(dataset.embodiments):
        rows = ids == index
        if not rows.any():
            continue
        own, width = mask[rows][..., : embodiment.action_dim], embodiment.action_dim
        target = torch.from_numpy(embodiment.denormalize_actions(actions[rows][..., :width].cpu()))
        answer = torch.from_numpy(embodiment.denormalize_actions(sampled[rows][..., :width].cpu()))
        mean = (target * own).sum(0) / own.sum(0).clamp(min=1)
        result[f"reconstruction_error/{embodiment.name}"] = (answer - target).abs()[own].mean().item()
        result[f"mean_chunk_error/{embodiment.name}"] = (mean - target).abs()[own].mean().item()
    return result


__all__ = ["pretrain_action_prior", "prior_metrics"]
