"""`priorvla evaluate`: a checkpoint in, report.html, report.json and films out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..configuration.embodiment import Embodiment
from ..hub_cards.privacy import scrub
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .action_limits import ActionLimits
from .checkpoint_identity import checkpoint_identity
from .compilation import require_compiler
from .environments.registry import make_environment
from .evaluation import EvaluationResult, evaluate_policy
from .evaluation_arguments import check_evaluation
from .evaluation_report import write_evaluation
from .policy import PriorVLAPolicy
from .trial_records import TrialRecords


def evaluate_checkpoint(
    checkpoint: str,
    env: str,
    tasks: Sequence[str],
    trials: int,
    output_dir: Path,
    *,
    execute_steps: int | None = None,
    max_episode_steps: int | None = None,
    films: int = 1,
    blank_images: bool = False,
    backbone: str = "auto",
    workers: int = 1,
    seed: int = 0,
    device: str = "cpu",
    embodiment: str | None = None,
    action_limits: Path | None = None,
    compile: bool = False,  # noqa: A002, torch's word for it
    environment_options: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Evaluates a policy checkpoint in closed loop and writes the report into `output_dir`; see `evaluate_policy`.

    Every finished trial is kept in `output_dir` at once (`TrialRecords`). The same call goes on after it was killed,
    and one with more tasks or trials extends an evaluation that is finished; number of processes and films may change,
    but what is finished is not filmed afterwards. The result is that of a call that nobody killed, and the report,
    which is written at the end, is of all trials.

    `embodiment` is the checkpoint's name for the simulator's robot, by default the simulator's own,
    `environment_options` are further arguments of the simulator, for example `{"robot": "iiwa"}`, and `action_limits`
    the file of limits that every command is kept within (`ActionLimits.from_file`). With `compile` every process
    compiles its policy before its first trial (`compile_expert`). The report names the checkpoint by its Hub id or
    relative path, of an absolute path the last component alone.

    Raises ValueError or FileNotFoundError before the policy is loaded: as `check_evaluation`, as
    `ActionLimits.from_file`, and as `TrialRecords` when `output_dir` has trials of other settings or of another state
    of the checkpoint. RuntimeError when there is nothing to compile with.
    """
    check_evaluation(
        checkpoint,
        env,
        tasks,
        trials,
        output_dir,
        execute_steps=execute_steps,
        max_episode_steps=max_episode_steps,
        films=films,
        workers=workers,
        seed=seed,
        device=device,
        action_limits=action_limits,
    )
    if compile:
        require_compiler(device)
    options = dict(environment_options or {})
    robot = _robot(env, tasks[0], options)
    body = _body(checkpoint, embodiment, robot)
    limits = None if action_limits is None else ActionLimits.from_file(action_limits, body)
    settings = {
        "environment": env,
        "environment_options": options,
        "robot": robot,
        "embodiment": embodiment or f"{env}'s own",
        "seed": seed,
        "max_episode_steps": max_episode_steps or f"{env}'s own",
        "execute_steps": execute_steps,
        "action_limits": None if limits is None else limits.by_dim(body),
        "blank_images": blank_images,
        "device": device,
        "compiled": compile or None,  # None as in records that are older than the option
    }
    with TrialRecords(output_dir, {"weights": checkpoint_identity(checkpoint), **settings}) as records:
        records.require(tasks, trials)
        make_policy = partial(
            _warm_policy,
            checkpoint,
            backbone=backbone,
            device=device,
            execute_steps=execute_steps,
            embodiment=body.name,
            limits=limits,
            compile=compile,
        )
        result = evaluate_policy(
            make_policy,
            tasks,
            environment=env,
            trials=trials,
            seed=seed,
            num_workers=workers,
            films_per_task=films,
            blank_images=blank_images,
            environment_options={
                **options,
                **({} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}),
            },
            embodiment=embodiment,
            records=records,
        )
        page = write_evaluation(result, {"checkpoint": scrub(checkpoint), **settings}, records)
    counted = result.to_dict()["overall"]
    low, high = counted["interval"]
    print(f"{counted['successes']} of {counted['trials']} episodes succeeded (95 % interval {low:.0%} to {high:.0%})")
    print(f"Report: {page}", file=sys.stderr)
    return result


def _warm_policy(checkpoint: str, **arguments: Any) -> PriorVLAPolicy:
    policy = PriorVLAPolicy.from_pretrained(checkpoint, **arguments)
    if policy.compiled:
        policy.warm_up()
    return policy


def _robot(env: str, task: str, options: Mapping[str, Any]) -> str:
    """The name of the simulator's robot; refuses options that the simulator does not know."""
    environment = make_environment(env, task, **options)
    try:
        return environment.embodiment.name
    finally:
        environment.close()


def _body(checkpoint: str, embodiment: str | None, robot: str) -> Embodiment:
    """What the checkpoint knows of the body that it drives: the one named, the only one, or the simulator's `robot`."""
    processor = PriorVLAProcessor.from_pretrained(checkpoint)
    return processor.embodiment(embodiment or (robot if len(processor.embodiments) > 1 else None))


__all__ = ["evaluate_checkpoint"]
