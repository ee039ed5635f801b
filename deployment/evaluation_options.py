"""The options of `priorvla evaluate`: in a simulator, or open loop on recorded episodes. Imports nothing heavy."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What only one of the two kinds takes, with the value that means nothing was said.
CLOSED_LOOP: dict[str, Any] = {
    "env": "metaworld",
    "tasks": None,
    "robot": None,
    "action_space": None,
    "starts": None,
    "image_size": None,
    "trials": 10,
    "batch_size": 1,
    "max_episode_steps": None,
    "films": 1,
    "blank_images": False,
    "action_limits": None,
    "compile": False,
}
OPEN_LOOP: dict[str, Any] = {"open_loop": None, "episodes": None}
ENVIRONMENT_OPTIONS = ("action_space", "starts", "image_size")


def add_evaluation_options(command: argparse.ArgumentParser, workers: int) -> None:
    """What can be said on the command line; `workers` is the default of that option."""
    command.epilog = (
        f"{command.epilog or ''} The same command goes on with an evaluation that was stopped, and with more tasks, "
        "trials or arms extends one."
    ).strip()
    command.set_defaults(**CLOSED_LOOP, **OPEN_LOOP)
    command.add_argument("checkpoint", help="folder or Hub id of a policy, or with --open-loop of a prior that sees")
    command.add_argument("--env", help="simulator: metaworld, tabletop, libero, aloha or pusht")
    command.add_argument(
        "--tasks", "--suite", nargs="+", metavar="TASK", help="tasks, suites of them (libero_object_swap), or 'all'"
    )
    command.add_argument(
        "--robot", "--arm", nargs="+", metavar="ARM", help="libero: some of panda, iiwa, ur5e and kinova3, each in turn"
    )
    command.add_argument("--action-space", help="libero: eef (the hand's displacement) or joint (joint targets)")
    command.add_argument("--starts", help="libero: drawn by the seed, or recorded: the benchmark's own; default: drawn")
    command.add_argument(
        "--image-size", type=int, help="side of a picture, pixels, as it was collected; default: the simulator's own"
    )
    command.add_argument("--trials", type=int, help="episodes a task")
    command.add_argument("--open-loop", metavar="DATASET", help="recorded episodes to compare with, no simulator")
    command.add_argument(
        "--episodes", nargs="+", metavar="N", help="open loop: numbers and ranges, 0 7-9; default: held out, or last 3"
    )
    command.add_argument("--output-dir", type=Path, help="of report.html, report.json, trials and films")
    command.add_argument(
        "--embodiment",
        nargs="+",
        metavar="NAME",
        help="the robot, by the checkpoint's name; default: its own; of several arms one each, in their order",
    )
    command.add_argument("--execute-steps", type=int, help="steps of a chunk before the next; default: half of it")
    command.add_argument(
        "--action-limits", type=Path, metavar="FILE", help="YAML or JSON: low, high, max_rate, max_jerk of commands"
    )
    command.add_argument("--max-episode-steps", type=int, help="an episode ends here; default: the simulator's own")
    command.add_argument("--films", type=int, help="filmed trials a task; 0: no strips of failures either")
    command.add_argument("--blank-images", action="store_true", help="black pictures: what it does without looking")
    command.add_argument(
        "--backbone", default="auto", help="folder to take the backbone from; auto: what the config names"
    )
    command.add_argument("--workers", type=int, default=workers, help="processes of one thread each")
    command.add_argument("--batch-size", type=int, help="episodes side by side in each process, in one batch")
    command.add_argument("--compile", action="store_true", help="the policy, before its first action: minutes")
    command.add_argument("--seed", type=int, default=0, help="of the starts; open loop: of the noise")
    command.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the policy runs")


def run_evaluation(options: dict[str, Any]) -> None:
    """Does what `priorvla evaluate` was asked for.

    Raises ValueError on options of both kinds, a missing one, and as `check_evaluation` or `check_replay`.
    """
    if options["open_loop"] is None:
        _leave_out(options, OPEN_LOOP, "without --open-loop")
        _run_closed_loop({name: value for name, value in options.items() if name not in OPEN_LOOP})
    else:
        _leave_out(options, CLOSED_LOOP, "with --open-loop")
        unused = {*CLOSED_LOOP, "workers"}
        _run_open_loop({name: value for name, value in options.items() if name not in unused})


def _run_closed_loop(options: dict[str, Any]) -> None:
    from .environments.registry import expand_tasks
    from .evaluation_arguments import check_evaluation

    if options["tasks"] is None:
        raise ValueError("--tasks is missing: give it on the command line or in the --config file")
    options["tasks"] = expand_tasks(options["env"], options["tasks"])
    options["robots"], options["embodiments"] = options.pop("robot"), options.pop("embodiment")
    given = {name: options.pop(name) for name in ENVIRONMENT_OPTIONS}
    unchecked = ("blank_images", "backbone", "compile")
    check_evaluation(**{name: value for name, value in options.items() if name not in unchecked})
    from .evaluate import evaluate_checkpoint

    evaluate_checkpoint(
        **options, environment_options={name: value for name, value in given.items() if value is not None}
    )


def _run_open_loop(options: dict[str, Any]) -> None:
    from .replay_arguments import check_replay

    bodies = options.pop("embodiment")
    if bodies is not None and len(bodies) > 1:
        raise ValueError(f"--embodiment {' '.join(bodies)}: a dataset is of one robot, name one")
    options["embodiment"] = None if bodies is None else bodies[0]
    check_replay(**{name: value for name, value in options.items() if name not in ("backbone", "embodiment")})
    from .replay_report import replay_checkpoint

    replay_checkpoint(dataset=options.pop("open_loop"), **options)


def _leave_out(options: Mapping[str, Any], defaults: Mapping[str, Any], when: str) -> None:
    for name, default in defaults.items():
        if options[name] != default:
            raise ValueError(f"--{name.replace('_', '-')} means nothing {when}: leave it out")


__all__ = ["add_evaluation_options", "run_evaluation"]
