"""The card of a collected dataset: what it is, and what its episodes are and are not good for."""

from __future__ import annotations

from collections.abc import Mapping

from ..configuration.embodiment import Embodiment

CARD_FILE = "README.md"
HEADER = """---
task_categories:
- robotics
tags:
- LeRobot
configs:
- config_name: default
  data_files: data/*/*.parquet
---
"""
SOLVED = "Only episodes that solve their task are kept."
MOTION = (
    "**Success is not the criterion here**: episodes that do not solve their task are kept too. They are motion, good "
    "for an action prior, and no set of solutions to imitate."
)


def collection_card(
    environment: str, body: Embodiment, frames: int, success_rates: Mapping[str, float], success_required: bool
) -> str:
    """The README.md of a dataset that `collect` made; `success_rates` are the expert's, by task."""
    minutes = frames / body.control_rate / 60
    rows = "\n".join(f"| {task} | {rate:.0%} |" for task, rate in success_rates.items())
    return (
        f"{HEADER}\n# {body.name}, driven by scripted experts\n\n"
        f"{minutes:.1f} minutes of motion in the simulator `{environment}`: {body.action_dim} action and "
        f"{body.state_dim} state dims at {body.control_rate:g} Hz, recorded with `priorvla collect`. Labels are what "
        "the expert wanted; where noise was added to what was executed, in every second episode, they are still clean."
        f"\n\n{SOLVED if success_required else MOTION} What share of the starts that it tried the expert solved:\n\n"
        f"| task | solved |\n|---|--:|\n{rows}\n\n"
        "Every episode's start and noise are in `meta/collection.json`.\n"
    )


__all__ = ["CARD_FILE", "collection_card"]
