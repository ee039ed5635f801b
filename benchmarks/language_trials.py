"""What `language.py` asks of a policy: what it does in episodes, and how far other words move its actions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np

from priorvla.deployment.environments.registry import expand_tasks, list_tasks
from priorvla.deployment.environments.tabletop_env import TabletopEnv
from priorvla.deployment.environments.tabletop_grammar import TEMPLATES, Container, Request, wording
from priorvla.deployment.environments.tabletop_layouts import draw_episode, implied_request, possible_requests
from priorvla.deployment.environments.trial_starts import start_seed
from priorvla.deployment.evaluation import evaluate_policy
from priorvla.deployment.policy import PriorVLAPolicy
from priorvla.deployment.trial_records import TrialRecords
from priorvla.training.language_sensitivity import language_sensitivity

PICTURE = 112  # pixels a side; of 84, a policy learned less in as many minutes (docs/language.md)
SIDE_BY_SIDE = 10  # episodes in a batch
FIRST_SCENE = 50_000  # of those whose first observations are used; no trial has such a number
NUMBERS = {task: number for number, task in enumerate(list_tasks("tabletop"), start=1)}


def start_of(task: str, seed: int) -> int:
    """The seed of a task's episodes: every task has layouts of its own, which no demonstration and no other task has.

    With one seed for all, trial 3 of `seen/put` and of `seen/move` would be the same scene.
    """
    return 1_000 * NUMBERS[task] + seed


@cache
def contradicted(suite: str, trials: int, seed: int) -> tuple[str, ...]:
    """What the words of each of `done_by`'s episodes say otherwise than the layout implies (`difference`)."""
    told = []
    for task in expand_tasks("tabletop", [suite]):
        for trial in range(trials):
            random = np.random.default_rng(start_seed(start_of(task, seed), trial))
            episode = draw_episode(suite, task.partition("/")[2], random)
            told.append(difference(episode.requests[0], implied_request(episode.layout)))
    return tuple(told)


def difference(asked: Request, implied: Request) -> str:
    """Which `thing` is meant; of the implied thing, only into which `container` it goes; or whether it goes to a
    `side`, and to which; or `nothing`.

    Things and containers have to be found in the picture; where a side is, words say by themselves.
    """
    if asked.thing != implied.thing:
        return "thing"
    if asked.place == implied.place:
        return "nothing"
    return "container" if {type(asked.place), type(implied.place)} == {Container} else "side"


def done_by(policy: Path, suites: Sequence[str], trials: int, seed: int, *, words: bool = True) -> dict[str, list[str]]:
    """Suite -> what a policy did in `trials` episodes of each of its kinds; kept in the policy's folder."""
    folder = policy / ("evaluation" if words else "evaluation-without-words")
    load = cache(partial(PriorVLAPolicy.from_pretrained, str(policy)))  # once for all tasks, if there is one to do
    done: dict[str, list[str]] = {suite: [] for suite in suites}
    for task in expand_tasks("tabletop", list(suites)):
        start = start_of(task, seed)
        with TrialRecords(
            folder / task.replace("/", "-"), {"seed": start, "trials": trials, "words": words}
        ) as records:
            evaluate_policy(
                load,
                [task],
                environment="tabletop",
                trials=trials,
                seed=start,
                batch_size=SIDE_BY_SIDE,
                environment_options={"words": words, "image_size": PICTURE},
                records=records,
            )
            own = {trial: str(record.outcome) for (_, _, trial), record in records.finished.items()}
        done[task.partition("/")[0]] += [own[trial] for trial in range(trials)]
    return done


def listening(policy: Path, scenes: int, seed: int) -> dict[str, float]:
    """`language_sensitivity` where a fresh scene of `seen` begins, to a request for the other thing of that scene.

    Where a thing is to go shows in later actions than those of the first chunk.
    """
    random = np.random.default_rng(seed)
    observations = []
    for task in ("seen/put", "seen/move"):
        with TabletopEnv(task, image_size=PICTURE) as table:
            for scene in range(scenes // 2):
                observation, _ = table.reset(seed=start_seed(start_of(task, seed), FIRST_SCENE + scene))
                assert table.episode is not None
                (asked,) = table.episode.requests
                others = [r for r in possible_requests("seen", table.episode.layout) if r.thing != asked.thing]
                worded = [wording(own, str(random.choice(TEMPLATES[own.kind]))) for own in others]
                seen = {"state": observation["state"], "images": dict(observation["images"])}
                observations.append({**seen, "instruction": table.instruction, "alternatives": worded})
    return language_sensitivity(PriorVLAPolicy.from_pretrained(str(policy)), observations, seed=seed).metrics()
