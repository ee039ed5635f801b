"""`priorvla evaluate`: a checkpoint in, report.html, report.json and films out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..configuration.configuration_priorvla import PriorVLAConfig
from ..hub_cards.privacy import scrub
from .checkpoint_identity import at_revision, checkpoint_commit, checkpoint_identity
from .compilation import require_compiler
from .driven_robots import driven_robots
from .environments.registry import require_starts
from .evaluation import EvaluationResult, IncompleteEvaluationError, evaluate_policy, pooled
from .evaluation_arguments import check_evaluation
from .evaluation_report import summary, write_evaluation
from .policy import PriorVLAPolicy
from .simulator_versions import evaluation_versions
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
    batch_size: int = 1,
    seed: int = 0,
    device: str = "cpu",
    robots: Sequence[str] | None = None,
    embodiments: Sequence[str] | None = None,
    action_limits: Path | None = None,
    compile: bool = False,  # noqa: A002, torch's word for it
    environment_options: Mapping[str, Any] | None = None,
) -> dict[str, EvaluationResult]:
    """Evaluates a policy checkpoint in closed loop and writes the report into `output_dir`; see `evaluate_policy`.

    Every finished trial is kept in `output_dir` at once (`TrialRecords`). The same call goes on after it was killed,
    and one with more tasks, trials or robots extends an evaluation that is finished; numbers of processes, of episodes
    in a batch and of films may change, but what is finished is not filmed afterwards. The result, by robot, is that of
    a call that nobody killed, and the report, which is written at the end, is of all trials, and says which failed to
    end.

    `robots` are some of the simulator's, which do all tasks one after the other (for LIBERO `["panda", "ur5e"]`), by
    default its only one. `embodiments` are the checkpoint's names for them, by default the simulator's own,
    `environment_options` further arguments of the simulator, for example `{"starts": "recorded"}`, and `action_limits`
    the file of limits that every command is kept within (`ActionLimits.from_file`). With `compile` every process
    compiles its policy before its first trial (`compile_expert`). The report names the checkpoint by its Hub id or
    relative path, of an absolute path the last component alone.

    Raises ValueError or FileNotFoundError before the policy is loaded: as `check_evaluation`, as `require_starts`, as
    `driven_robots`, and as `TrialRecords` when `output_dir` has trials of other settings or of another state of the
    checkpoint. RuntimeError when there is nothing to compile with. IncompleteEvaluationError at the end, when trials
    failed to end.
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
        batch_size=batch_size,
        seed=seed,
        device=device,
        robots=robots,
        embodiments=embodiments,
        action_limits=action_limits,
    )
    if compile:
        require_compiler(device)
    options = dict(environment_options or {})
    require_starts(env, tasks, trials, options)
    commit = checkpoint_commit(checkpoint)
    if execute_steps is not None:
        _require_steps(checkpoint, commit, execute_steps)
    driven = driven_robots(checkpoint, env, tasks[0], options, robots, embodiments, action_limits, commit)
    settings = {
        robot.name: {
            "environment": env,
            "environment_options": {name: value for name, value in options.items() if name != "robot"},
            "robot": robot.name,
            "embodiment": robot.embodiment or f"{env}'s own",
            "seed": seed,
            "max_episode_steps": max_episode_steps or f"{env}'s own",
            "execute_steps": execute_steps,
            "action_limits": None if robot.limits is None else robot.limits.by_dim(robot.body),
            "blank_images": blank_images,
            "device": device,
            "compiled": compile or None,  # None as in records that are older than the option
            "versions": evaluation_versions(env),
        }
        for robot in driven
    }
    weights = commit or checkpoint_identity(checkpoint)
    with TrialRecords(output_dir, *({"weights": weights, **own} for own in settings.values())) as records:
        results: dict[str, EvaluationResult] = {}
        for robot in driven:
            make_policy = partial(
                _warm_policy,
                checkpoint,
                commit,
                backbone=backbone,
                device=device,
                execute_steps=execute_steps,
                embodiment=robot.body.name,
                limits=robot.limits,
                compile=compile,
                batch_size=batch_size,
            )
            try:
                results[robot.name] = evaluate_policy(
                    make_policy,
                    tasks,
                    environment=env,
                    trials=trials,
                    seed=seed,
                    num_workers=workers,
                    batch_size=batch_size,
                    films_per_task=films,
                    blank_images=blank_images,
                    environment_options={
                        **robot.options,
                        **({} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}),
                    },
                    embodiment=robot.embodiment,
                    records=records,
                    robot=robot.name,
                )
            except IncompleteEvaluationError as incomplete:
                results[robot.name] = incomplete.result
        page = write_evaluation(results, settings, records, scrub(checkpoint))
    print("\n".join(summary(results, settings, records)))
    print(f"Report: {page}", file=sys.stderr)
    together = pooled(results.values())
    if together.missing:
        raise IncompleteEvaluationError(together)
    return results


def _require_steps(checkpoint: str, commit: str | None, execute_steps: int) -> None:
    steps = PriorVLAConfig.from_pretrained(checkpoint, **at_revision(commit)).expert.chunk_size
    if execute_steps > steps:
        raise ValueError(f"--execute-steps {execute_steps}: a chunk of {checkpoint} has {steps} steps, name no more")


def _warm_policy(checkpoint: str, commit: str | None, batch_size: int, **arguments: Any) -> PriorVLAPolicy:
    policy = PriorVLAPolicy.from_pretrained(checkpoint, **at_revision(commit), **arguments)
    if policy.compiled:
        policy.warm_up(batch_size, prefix_steps=None)  # every chunk begins anew
    return policy


__all__ = ["evaluate_checkpoint"]
