"""A trial in which environment or policy raises: the others still run, it is told as missing, and is run again."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import numpy as np
import pytest

from priorvla.cli import main
from priorvla.configuration.embodiment import Embodiment
from priorvla.deployment.episodes import UnfitError
from priorvla.deployment.evaluation import IncompleteEvaluationError, evaluate_policy
from priorvla.deployment.policy import RandomPolicy
from priorvla.deployment.trial_records import TrialRecords
from priorvla.hub_cards.card_evaluation import read_evaluation

BODY = Embodiment("small", ["a"], ["x"], 10.0).with_statistics(np.eye(2, 1), np.eye(2, 1))
make_policy = partial(RandomPolicy, BODY)


class Drawer:
    """An environment of one's own, of two steps: it fails from the starts `bad`, and succeeds from even ones."""

    built = 0

    def __init__(self, task: str, bad: tuple[int, ...] = ()) -> None:
        self.unwrapped, self.bad = self, bad
        type(self).built += 1

    def reset(self, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        self.seed, self.steps = seed, 0
        return {"state": np.zeros(1, np.float32), "images": {}}, {}

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self.seed in self.bad:
            raise RuntimeError("physics diverged in /home/me/scene.xml")
        self.steps += 1
        return {"state": np.zeros(1), "images": {}}, 0.0, False, self.steps == 2, {"success": self.seed % 2 == 0}

    def close(self) -> None:
        pass


class Headless(Drawer):
    """Its infos say nothing of success."""

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        return (*super().step(action)[:4], {})


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_other_trials_run_and_the_next_call_runs_what_is_missing(num_workers, batch_size, tmp_path):
    run = partial(evaluate_policy, make_policy, ["open it"], trials=6, num_workers=num_workers, batch_size=batch_size)
    for _ in range(2):
        with TrialRecords(tmp_path, {}) as records, pytest.raises(IncompleteEvaluationError) as raised:
            run(environment=partial(Drawer, bad=(2,)), records=records)
        assert "1 of 6 trials failed to end, the first of them 'open it', trial 2: RuntimeError: physics" in str(
            raised.value
        )
        assert raised.value.result.tasks["open it"].outcomes == [True, False, False, True, False]
        assert [(one.task, one.trial) for one in raised.value.result.missing] == [("open it", 2)]
        assert "in step" in raised.value.__notes__[0]
        assert len((tmp_path / "trials.jsonl").read_text().splitlines()) == 1 + 5
    with TrialRecords(tmp_path, {}) as records:
        assert run(environment=Drawer, records=records).tasks["open it"].outcomes == [True, False] * 3


class Confused(RandomPolicy):
    """It fails in the episode that begins from 1, and so does every batch which that is in."""

    def __init__(self) -> None:
        super().__init__(BODY)
        self.batches: list[int] = []

    def new_session(self, seed: int) -> Any:
        return seed

    def act(self, sessions: Any, observations: Any) -> Any:
        self.batches.append(len(sessions))
        if 1 in sessions:
            raise ValueError("not finite")
        return np.zeros((len(sessions), 1), np.float32)


def test_an_error_of_the_policy_ends_the_trial_whose_it_is_and_no_other_of_its_batch():
    policy = Confused()
    with pytest.raises(IncompleteEvaluationError) as raised:
        evaluate_policy(policy, ["open it"], trials=4, environment=Drawer, batch_size=3)
    assert [(one.trial, one.error) for one in raised.value.result.missing] == [(1, "ValueError: not finite")]
    assert raised.value.result.tasks["open it"].outcomes == [True, True, False]
    # three begin, and each is asked alone, because one of them failed; the fourth takes two steps
    assert policy.batches == [3, 1, 1, 1, 1, 1]


def test_episodes_side_by_side_have_an_environment_each_and_their_places_are_taken_again():
    Drawer.built, seen = 0, []

    class Counting(RandomPolicy):
        def act(self, sessions: Any, observations: Any) -> Any:
            seen.append(len(sessions))
            return super().act(sessions, observations)

    result = evaluate_policy(Counting(BODY), ["open it"], trials=7, environment=Drawer, batch_size=3)
    assert result.tasks["open it"].outcomes == [True, False] * 3 + [True]
    assert Drawer.built == 3 and max(seen) == 3 and sum(seen) == 4 * 1 + 3 * 2  # a success ends an episode at once
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        evaluate_policy(make_policy, ["open it"], environment=Drawer, batch_size=0)


def test_after_a_trial_that_failed_the_environment_is_built_anew():
    Drawer.built = 0
    with pytest.raises(IncompleteEvaluationError):
        evaluate_policy(make_policy, ["open it"], trials=4, environment=partial(Drawer, bad=(1,)))
    assert Drawer.built == 2


def test_what_no_trial_could_do_ends_the_evaluation_at_once():
    Drawer.built = 0
    with pytest.raises(UnfitError, match="have no success or is_success"):
        evaluate_policy(make_policy, ["open it"], trials=4, environment=Headless)
    assert Headless.built == 1


def test_the_command_reports_which_trials_are_missing_and_why_and_fails(
    save_policy, tiny_backbone, tmp_path, capsys, monkeypatch
):
    metaworld_env = pytest.importorskip("priorvla.deployment.environments.metaworld_env")
    pytest.importorskip("metaworld")
    body = metaworld_env.metaworld_embodiment().with_statistics(np.zeros((2, 4)), np.array([[-1.0] * 4, [1.0] * 4]))
    checkpoint, folder = save_policy(tmp_path / "policy", [body]), tmp_path / "evaluation"
    command = ["evaluate", str(checkpoint), "--tasks", "reach", "drawer-close", "--trials", "2", "--workers", "1"]
    command += ["--max-episode-steps", "3", "--films", "0", "--backbone", str(tiny_backbone)]
    command += ["--output-dir", str(folder)]
    reset, resets = metaworld_env.MetaWorldEnv.reset, []

    def failing(env: Any, *, seed: int) -> Any:
        resets.append((env.task, seed))
        if env.task == "reach":
            raise RuntimeError(f"no contact in {tmp_path}/model.xml")
        return reset(env, seed=seed)

    monkeypatch.setattr(metaworld_env.MetaWorldEnv, "reset", failing)
    assert main(command) == 1
    said = capsys.readouterr()
    assert "of 2 episodes succeeded" in said.out
    assert (
        "error: 2 of 4 trials failed to end, the first of them 'reach', trial 0: RuntimeError: no contact" in said.err
    )
    report = json.loads((folder / "report.json").read_text())
    assert report["overall"]["trials"] == 2 and report["missing"] == 2
    assert report["tasks"]["reach"] == {"successes": 0, "trials": 0, "interval": None, "outcomes": []}
    missing = report["robots"]["metaworld_sawyer"]["missing"]
    assert [(one["task"], one["trial"]) for one in missing] == [("reach", 0), ("reach", 1)]
    page = (folder / "report.html").read_text()
    assert "2 trials failed to end" in page and "no contact in model.xml" in page
    assert str(tmp_path) not in page + json.dumps(report)
    with pytest.raises(ValueError, match=r"is incomplete, 2 trials failed to end: run the evaluation again"):
        read_evaluation(folder)

    monkeypatch.setattr(
        metaworld_env.MetaWorldEnv, "reset", lambda env, *, seed: resets.append(env.task) or reset(env, seed=seed)
    )
    resets.clear()
    assert main(command) == 0
    assert resets == ["reach", "reach"]
    assert read_evaluation(folder)["tasks"]["reach"]["trials"] == 2
