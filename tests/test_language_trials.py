"""What the language benchmark asks of a policy: scenes of their own for every task, and other words for one scene."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from priorvla.deployment.environments.registry import list_tasks
from priorvla.deployment.environments.tabletop_env import TabletopEnv
from priorvla.deployment.environments.trial_starts import start_seed

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's module, which imports its neighbours from its own folder."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("language_trials")


def test_no_two_tasks_and_no_two_seeds_share_a_scene(trials: Any) -> None:
    every = [trials.start_of(task, seed) for task in list_tasks("tabletop") for seed in range(10)]
    starts = [start_seed(start, n) for start in every for n in range(50)]
    demonstrations = [start_seed(seed, n) for seed in range(10) for n in range(1_500)]
    assert len(set(starts)) == len(starts) and not set(starts) & set(demonstrations)
    scenes = set()
    for task in ("seen/put", "seen/move", "paraphrase/put", "unseen-object/put"):
        with TabletopEnv(task, render=False) as table:
            table.reset(seed=start_seed(trials.start_of(task, 4), 3))
            assert table.episode is not None
            scenes.add(str(table.episode.layout.places))
    assert len(scenes) == 4


def test_a_suite_is_told_task_by_task_in_the_order_of_its_trials(
    trials: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def evaluate(policy: Any, tasks: list[str], *, trials: int, seed: int, records: Any, **options: Any) -> None:
        asked.append((tasks[0], {"seed": seed, **options["environment_options"]}))
        for trial in reversed(range(trials)):
            records.finished["", tasks[0], trial] = SimpleNamespace(outcome=f"{tasks[0]} {trial}")

    monkeypatch.setattr(trials, "evaluate_policy", evaluate)
    done = trials.done_by(tmp_path, ["seen"], 2, 4, words=False)
    assert done == {"seen": ["seen/move 0", "seen/move 1", "seen/put 0", "seen/put 1"]}
    assert {task for task, _ in asked} == {"seen/put", "seen/move"}
    assert all(told == {"seed": trials.start_of(task, 4), "words": False, "image_size": 112} for task, told in asked)


def test_other_words_are_of_the_same_scene(trials: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, Any]] = []

    class Told:
        def metrics(self) -> dict[str, float]:
            return {"language_sensitivity/swap": 2.0}

    def sensitivity(policy: Any, observations: list[dict[str, Any]], seed: int) -> Told:
        heard.extend(observations)
        return Told()

    monkeypatch.setattr(trials, "language_sensitivity", sensitivity)
    monkeypatch.setattr(trials.PriorVLAPolicy, "from_pretrained", lambda folder: None)
    assert trials.listening(tmp_path, 6, 4) == {"language_sensitivity/swap": 2.0}
    assert len(heard) == 6 and len({observation["instruction"] for observation in heard}) > 3
    for observation in heard:
        others = observation["alternatives"]
        assert others and observation["instruction"] not in others and len(set(others)) == len(others)
        assert observation["images"]["front"].shape == (112, 112, 3)
