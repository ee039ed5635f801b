"""An evaluation resets its environments with numbers from which a trial can be told, whatever the seed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest

if find_spec("gymnasium") is None:
    pytest.skip("needs gymnasium", allow_module_level=True)
import gymnasium

from priorvla.deployment.environments.trial_starts import start_seed, trial_of
from priorvla.deployment.evaluation import evaluate_policy
from priorvla.deployment.policy import RandomPolicy


class OneStep(gymnasium.Env):
    """Ends at once and remembers what it was reset with."""

    def __init__(self, task: str, seeds: list[int]) -> None:
        self.seeds = seeds

    def reset(self, *, seed: int, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.seeds.append(seed)
        return {"state": np.zeros(3), "images": {}}, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        return {"state": np.zeros(3), "images": {}}, 0.0, False, True, {"success": False}


def test_a_trial_is_known_by_what_its_environment_is_reset_with(bodies) -> None:
    blind = replace(bodies[0], cameras=[])
    for seed in (0, 1, 7):
        seeds: list[int] = []
        evaluate_policy(RandomPolicy(blind), ["t"], environment=partial(OneStep, seeds=seeds), trials=3, seed=seed)
        assert seeds == [start_seed(seed, trial) for trial in range(3)]
        assert [trial_of(given) for given in seeds] == [0, 1, 2]
    assert start_seed(0, 2) == 2  # so that `reset(seed=2)` alone is the third trial
