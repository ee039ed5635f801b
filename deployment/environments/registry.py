"""Simulators by name. Nothing of a simulator is imported before one of its tasks is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray

from ...configuration.embodiment import Embodiment
from ...configuration.recipe import require_known

# name -> (module, class, file with the tasks and their instructions)
_ENVIRONMENTS = {
    "aloha": ("aloha_env", "AlohaEnv", "aloha_tasks.yaml"),
    "libero": ("libero_env", "LiberoEnv", "libero_tasks.yaml"),
    "metaworld": ("metaworld_env", "MetaWorldEnv", "metaworld_tasks.yaml"),
    "pusht": ("pusht_env", "PushTEnv", "pusht_tasks.yaml"),
    "tabletop": ("tabletop_env", "TabletopEnv", "tabletop_tasks.yaml"),
}
# Suites and tasks that have a scripted expert, where not all tasks have one.
SCRIPTED = {
    "libero": (
        *(
            f"{suite}{split}"
            for suite in ("libero_object", "libero_spatial")
            for split in ("", "_lan", "_object", "_swap", "_task")
        ),
        "libero_goal/put_the_bowl_on_the_plate",
        "libero_goal/put_the_bowl_on_the_stove",
        "libero_goal/put_the_bowl_on_top_of_the_cabinet",
        "libero_goal/put_the_cream_cheese_in_the_bowl",
    )
}
# Tasks of these suites that have none all the same, and why.
_UNSCRIPTED = {
    "libero_object_object/pick_up_the_alphabet_soup_and_place_it_in_the_basket": "9 cm wide, too wide to take"
}
# Suites that a benchmark names and its package has no files of.
_WITHOUT_FILES = {"libero": [f"libero_{suite}_env" for suite in ("object", "spatial", "goal", "10")]}


class OutOfReachError(RuntimeError):
    """A robot cannot take the pose that its scripted expert wants: the expert does not solve this start."""


class RobotEnvironment(Protocol):
    """What collecting and evaluating need of a simulated robot; every one of ours is a `gymnasium.Env` that has it.

    Observations are `{"state": (S,) float32, "images": Mapping camera -> (h, w, 3) uint8}`, infos have `success`.
    `noise_scale`, a number or one an action dim, is what one unit of noise means in the action's units. Where
    `success_required` is false, episodes that do not succeed are worth recording too. `steps_after_success` is how long
    a demonstration goes on once its task is solved. `expert_action` may raise `OutOfReachError`.
    """

    embodiment: Embodiment
    instruction: str
    max_episode_steps: int
    success_required: bool
    steps_after_success: int

    @property
    def noise_scale(self) -> float | NDArray[np.float32]: ...

    def reset(self, *, seed: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]: ...

    def step(self, action: ArrayLike) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]: ...

    def expert_action(self) -> NDArray[np.float32]: ...

    def render(self) -> NDArray[np.uint8]: ...

    def close(self) -> None: ...


def list_instructions(name: str) -> Mapping[str, str]:
    """Task name -> instruction of every task of the simulator `name`; imports no simulator. ValueError if unknown."""
    file = Path(__file__).with_name(_lookup(name)[2])
    instructions: dict[str, str] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return instructions


def expand_tasks(name: str, tasks: Sequence[str]) -> list[str]:
    """Task names for what a user names: `all`, a suite (`libero_object` for all of its tasks), or tasks themselves.

    Raises ValueError as `require_tasks`.
    """
    known = list_tasks(name)
    if list(tasks) == ["all"]:
        return known
    suites = {task.rpartition("/")[0] for task in known} - {""}
    for given in tasks:
        if given in _WITHOUT_FILES.get(name, ()):
            raise ValueError(f"{given!r}: the simulator's package has no task files of that suite, leave it out")
        if suites and "/" not in given and given not in suites:
            raise ValueError(f"{name} has no suite {given!r}, use a task, 'all', or of: {', '.join(sorted(suites))}")
    expanded = [
        task
        for given in tasks
        for task in ([t for t in known if t.startswith(f"{given}/")] if given in suites else [given])
    ]
    require_tasks(name, expanded)
    return expanded


def list_tasks(name: str) -> list[str]:
    """The task names of the simulator `name`, sorted. Raises ValueError on an unknown simulator."""
    return sorted(list_instructions(name))


def require_experts(name: str, tasks: Sequence[str]) -> None:
    """Raises ValueError when one of `tasks` has no scripted expert that could demonstrate it."""
    scripted = SCRIPTED.get(name)
    for task in tasks:
        if task in _UNSCRIPTED:
            raise ValueError(
                f"{name} has no scripted expert for {task!r} ({_UNSCRIPTED[task]}): name the other tasks of its suite"
            )
        if scripted is not None and not {task, task.rpartition("/")[0]} & {*scripted}:
            raise ValueError(f"{name} has no scripted expert for {task!r}, but for those of: {', '.join(scripted)}")


def require_starts(name: str, tasks: Sequence[str], trials: int, options: Mapping[str, Any]) -> None:
    """Raises ValueError when one of `tasks` has fewer starts than `trials`, which would repeat them; `options` are the
    environment's. Only recorded starts are ever too few."""
    if name != "libero" or options.get("starts") != "recorded":
        return
    from .libero_scene import recorded_starts

    for task in tasks:
        if trials > (most := len(recorded_starts(task))):
            raise ValueError(
                f"{task!r} has {most} recorded starts, {trials} trials would repeat some: use --trials {most}, or "
                "--starts drawn"
            )


def require_tasks(name: str, tasks: Sequence[str]) -> None:
    """Raises ValueError when `tasks` is empty, or holds one that the simulator `name` does not have or one twice."""
    known = list_tasks(name)
    if not tasks:
        raise ValueError(f"no task is named: name some of {name}'s, for example {known[0]!r}")
    require_known(tasks, known, f"--tasks of {name}")
    for task in tasks:
        if list(tasks).count(task) > 1:
            raise ValueError(f"--tasks: {task!r} is named twice: once is enough")


def make_environment(name: str, task: str, **kwargs: Any) -> RobotEnvironment:
    """Builds one task of a simulator, a `gymnasium.Env`.

    Args:
        name: the simulator, for example `metaworld`.
        task: one of `list_tasks(name)`.
        **kwargs: passed to the environment's class.

    Raises:
        ValueError: on an unknown simulator, task or argument.
        ImportError: where the simulator is not installed, with the extra to install.
    """
    module, class_name, _ = _lookup(name)
    environment_class = getattr(import_module(f".{module}", __package__), class_name)
    known = list(signature(environment_class.__init__).parameters)[2:]  # without self and task
    for key in kwargs:
        if key not in known:
            raise ValueError(f"{name} knows no {key!r}, only {', '.join(known)}: leave it out")
    environment: RobotEnvironment = environment_class(task, **kwargs)
    return environment


def _lookup(name: str) -> tuple[str, str, str]:
    if name not in _ENVIRONMENTS:
        raise ValueError(f"there is no simulator {name!r}, use one of: {', '.join(sorted(_ENVIRONMENTS))}")
    return _ENVIRONMENTS[name]


__all__ = [
    "OutOfReachError",
    "RobotEnvironment",
    "expand_tasks",
    "list_instructions",
    "list_tasks",
    "make_environment",
    "require_experts",
    "require_starts",
    "require_tasks",
]
