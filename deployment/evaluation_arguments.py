"""The arguments of `evaluate`, checked before anything heavy is loaded: this module imports no deep learning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..hub_cards.checkpoints import require_checkpoint
from ..training.run_options import require_device
from .action_limits import read_action_limits
from .environments.registry import require_tasks

REPORT_FILE, TRIALS_FILE = "report.json", "trials.jsonl"
DEVICES = ("cpu", "cuda")


def check_evaluation(
    checkpoint: str,
    env: str,
    tasks: Sequence[str],
    trials: int,
    output_dir: Path,
    *,
    execute_steps: int | None = None,
    max_episode_steps: int | None = None,
    films: int = 1,
    workers: int = 1,
    batch_size: int = 1,
    seed: int = 0,
    device: str = "cpu",
    robots: Sequence[str] | None = None,
    embodiments: Sequence[str] | None = None,
    action_limits: Path | None = None,
) -> None:
    """Checks what `evaluate_checkpoint` takes (torch is loaded for `device="cuda"` alone).

    Raises:
        ValueError: naming the option and its value: a number out of range, an unknown simulator, task or device, a task
            or arm named twice, not one embodiment for every arm, an `output_dir` that is a file or has a report without
            trials, or limits that are none.
        FileNotFoundError: `checkpoint` is neither a checkpoint's folder nor like a Hub id, or there are no such limits.
    """
    for name, value, least in (
        ("--trials", trials, 1),
        ("--workers", workers, 1),
        ("--batch-size", batch_size, 1),
        ("--max-episode-steps", 1 if max_episode_steps is None else max_episode_steps, 1),
        ("--execute-steps", 1 if execute_steps is None else execute_steps, 1),
        ("--films", films, 0),
        ("--seed", seed, 0),
    ):
        if value < least:
            raise ValueError(f"{name} {value} must be at least {least}")
    require_tasks(env, tasks)
    _require_one_body_an_arm(robots, embodiments)
    require_checkpoint(checkpoint, "checkpoint")
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"--output-dir {output_dir} is a file: name a folder")
    if (output_dir / REPORT_FILE).exists() and not (output_dir / TRIALS_FILE).exists():
        raise ValueError(f"--output-dir {output_dir} already has a report of something else: choose another folder")
    if action_limits is not None:
        read_action_limits(action_limits)
    require_device(device, DEVICES)


def _require_one_body_an_arm(robots: Sequence[str] | None, embodiments: Sequence[str] | None) -> None:
    named = list(robots or ())
    for robot in named:
        if named.count(robot) > 1:
            raise ValueError(f"--arm: {robot!r} is named twice: once is enough")
    arms = len(named) or 1
    if embodiments is not None and len(embodiments) != arms:
        raise ValueError(
            f"--embodiment names {len(embodiments)} ({', '.join(embodiments)}) for {arms} of --arm: name one for each, "
            "in their order (the same again where it drives several), or leave it out, and each is driven by the body "
            "of its own name"
        )


__all__ = ["DEVICES", "REPORT_FILE", "TRIALS_FILE", "check_evaluation"]
