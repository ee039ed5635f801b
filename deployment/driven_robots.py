"""The robots of an evaluation, and the checkpoint's body that drives each: settled before any policy is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..configuration.embodiment import Embodiment
from ..modeling_priorvla.processing_priorvla import PriorVLAProcessor
from .action_limits import ActionLimits
from .checkpoint_identity import at_revision
from .environments.registry import make_environment
from .episodes import require_same_robot


@dataclass(frozen=True)
class DrivenRobot:
    """One robot of a simulator.

    Args:
        name: of the simulator's own embodiment, for example `libero_ur5e_eef`.
        options: arguments of the environment that have it.
        body: what the checkpoint knows of the body that drives it.
        embodiment: the name of that body where it was asked for; None: the robot's own.
        limits: of its commands.
    """

    name: str
    options: dict[str, Any]
    body: Embodiment
    embodiment: str | None
    limits: ActionLimits | None


def driven_robots(
    checkpoint: str,
    env: str,
    task: str,
    options: Mapping[str, Any],
    robots: Sequence[str] | None = None,
    embodiments: Sequence[str] | None = None,
    action_limits: Path | None = None,
    commit: str | None = None,
) -> list[DrivenRobot]:
    """One for each of `robots`, as the simulator's option of that name takes them; None is the simulator's own.

    Each is driven by the body of its own name, or by that of `embodiments` at the same place. `commit` is that
    of a checkpoint on the Hub.

    Raises:
        ValueError: the simulator knows no such option, the checkpoint no such body, or that is of other dims or needs a
            camera that the simulator lacks; or `ActionLimits.from_file`'s.
    """
    processor = PriorVLAProcessor.from_pretrained(checkpoint, **at_revision(commit))
    chosen = [dict(options)] if robots is None else [{**options, "robot": robot} for robot in robots]
    known = [body.name for body in processor.embodiments]
    names: Sequence[str | None] = embodiments or [None] * len(chosen)
    driven = []
    for own, embodiment in zip(chosen, names, strict=True):
        robot = _robot(env, task, own)
        wanted = embodiment or (known[0] if len(known) == 1 else robot.name)
        if wanted not in known:
            raise ValueError(
                f"{checkpoint} knows no {wanted!r}: name one of its bodies by --embodiment, of {', '.join(known)}"
            )
        body = processor.embodiment(wanted)
        require_same_robot(body, robot, env, embodiment)
        limits = None if action_limits is None else ActionLimits.from_file(action_limits, body)
        driven.append(DrivenRobot(robot.name, own, body, embodiment, limits))
    return driven


def _robot(env: str, task: str, options: Mapping[str, Any]) -> Embodiment:
    """The simulator's robot; refuses options that the simulator does not know."""
    environment = make_environment(env, task, **options)
    try:
        return environment.embodiment
    finally:
        environment.close()


__all__ = ["DrivenRobot", "driven_robots"]
