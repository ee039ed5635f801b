"""Episodes that run side by side: one batch, and each of them as when it runs alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from priorvla.deployment.evaluation import evaluate_policy
from priorvla.deployment.policy import PriorVLAPolicy

Commands = dict[int, list[np.ndarray]]


class Reach:
    """Where it stands depends on its start and on every command; the longer, the later its start."""

    def __init__(self, task: str, commands: Commands) -> None:
        self.unwrapped, self.instruction, self.commands = self, task, commands

    def reset(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        self.seed = seed
        self.state = np.random.default_rng(seed).normal(size=3)
        self.commands[seed] = []
        return self.seen(), {}

    def seen(self) -> dict[str, Any]:
        picture = np.full((28, 28, 3), int(100 + 20 * np.clip(self.state[0], -5, 5)), np.uint8)
        return {"state": self.state.astype(np.float32), "images": {"front": picture}}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.commands[self.seed].append(action)
        self.state = self.state + 0.1 * action[:3]
        return self.seen(), 0.0, False, len(self.commands[self.seed]) == 7 + self.seed, {"success": False}

    def close(self) -> None:
        pass


@pytest.mark.parametrize("past", [False, True])
def test_a_policys_commands_are_those_that_it_gives_each_episode_alone(
    past: bool, save_policy: Callable, bodies: list, tiny_backbone: Path, tmp_path: Path
) -> None:
    folder = save_policy(tmp_path, bodies[:1], use_history=past, history_size=3)
    policy = PriorVLAPolicy.from_pretrained(folder, backbone=tiny_backbone)
    runs = []
    for batch_size in (1, 3):
        commands: Commands = {}
        evaluate_policy(
            policy, ["reach it"], trials=5, environment=partial(Reach, commands=commands), batch_size=batch_size
        )
        runs.append(commands)
    alone, beside = runs
    assert [len(commands) for commands in alone.values()] == [7, 8, 9, 10, 11]
    assert alone.keys() == beside.keys()
    for seed, commands in alone.items():
        np.testing.assert_allclose(beside[seed], commands, atol=1e-4)
        others = (theirs for other, theirs in alone.items() if other != seed)
        assert all(np.abs(theirs[0] - commands[0]).max() > 1e-2 for theirs in others)
