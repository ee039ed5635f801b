"""How many commands were not those that a policy wanted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CommandCounts:
    """Of the commands that were sent to a robot.

    Args:
        clamped: commands that `ActionLimits` changed.
        by_range, by_rate, by_jerk: those that `low` or `high`, `max_rate`, and `max_jerk` changed; some are in several.
        held: commands that keep the robot where it is, because the policy had none.
    """

    clamped: int = 0
    by_range: int = 0
    by_rate: int = 0
    by_jerk: int = 0
    held: int = 0


__all__ = ["CommandCounts"]
