"""Whether a policy listens, measured once, when its training is done."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext

from .data.trajectory import TrajectorySource
from .instruction_sampling import ModelSampler, draw_observations
from .language_sensitivity import language_sensitivity
from .vla_trainer import VLATrainer


def listening_metrics(
    trainer: VLATrainer,
    training: Sequence[TrajectorySource],
    held_out: Sequence[TrajectorySource],
    observations: int,
    seed: int,
) -> dict[str, float]:
    """Measures and prints whether the weights that will be saved listen; empty where that is not or cannot be measured.

    On held-out episodes, where those have a single task also on the others. Every process may call it, the first one
    measures. A training is not lost to a measurement that fails: then that is all that is printed.

    Args:
        observations: how many; 0 leaves it out.
    """
    if not observations or not trainer.is_world_process_zero():
        return {}
    if trainer.is_fsdp_enabled:
        _say("whether the policy listens is not measured: one process samples, and FSDP shards weights")
        return {}
    sources = list(held_out) if len(_tasks(held_out)) > 1 else [*held_out, *training]
    if len(tasks := _tasks(sources)) < 2:
        _say(f"whether the policy listens is not measured: there is no instruction but {next(iter(tasks))!r}")
        return {}
    try:
        drawn = draw_observations(sources, trainer.processor, observations, seed)
        with trainer.average.applied() if trainer.average is not None else nullcontext():
            measured = language_sensitivity(ModelSampler(trainer.model, trainer.processor), drawn, seed=seed)
    except (ValueError, OSError, RuntimeError) as error:
        _say(f"\nwhether the policy listens could not be measured: {error}")
        return {}
    _say(f"\n{measured.describe()}")
    return measured.metrics()


def _tasks(sources: Sequence[TrajectorySource]) -> set[str]:
    return {trajectory.task for source in sources for trajectory in source.trajectories}


def _say(text: str) -> None:
    print(text, file=sys.stderr)


__all__ = ["listening_metrics"]
