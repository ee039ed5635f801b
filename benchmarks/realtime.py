"""What a slow model costs a robot, and what real-time chunking gives back: success, pauses, and jolts at seams.

    python benchmarks/realtime.py --policy runs/policy --tasks drawer-open door-open --output-dir runs/realtime

Closed loop in Meta-World, where a prediction takes so many control steps (`--delays`). The same policy, starts and
noise in every arm:

    no delay           the simulator waits for every chunk: what evaluations usually measure
    real-time          the next chunk is computed while the last is executed, and begins with what that will execute
    naive switching    the same, but the chunk does not know what is executed while it is computed
    stop and go        the robot is held while a chunk is computed

A jolt is how far an action lies from the one before, at the step at which a new chunk takes over, in multiples of the
median over all other steps of the episode; a pause is a step without an action.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from priorvla.deployment.evaluation import evaluate_policy
from priorvla.deployment.policy import Observation, PriorVLAPolicy
from priorvla.deployment.realtime import RealTimePolicy
from priorvla.deployment.simulated_delay import DelayedPolicy, DelayedSession
from priorvla.hub_cards.intervals import wilson_interval
from priorvla.hub_cards.versions import installed_versions


class Recording(DelayedPolicy):
    """Keeps every episode's actions, and the steps at which a chunk took over."""

    def __init__(self, policy: PriorVLAPolicy, delay: int) -> None:
        super().__init__(policy, delay)
        self.episodes: list[tuple[RealTimePolicy, list[NDArray[np.float32]], list[int]]] = []

    def new_session(self, seed: int) -> DelayedSession:
        session = super().new_session(seed)
        self.episodes.append((session.robot, [], []))
        return session

    def act(self, sessions: Sequence[DelayedSession], observations: Sequence[Observation]) -> NDArray[np.float32]:
        robot, actions, seams = self.episodes[-1]
        before = robot.statistics.predictions
        action = super().act(sessions, observations)
        if robot.statistics.predictions > before:
            seams.append(len(actions))
        actions.append(action[0])
        return action

    def told(self) -> dict[str, float]:
        """Median jolt at seams, the worst tenth's least, and pauses in a hundred steps."""
        jolts: list[float] = []
        for _, actions, seams in self.episodes:
            change = np.linalg.norm(np.diff(np.stack(actions), axis=0), axis=1)
            elsewhere = np.delete(change, [seam - 1 for seam in seams])
            jolts += [change[seam - 1] / max(np.median(elsewhere), 1e-6) for seam in seams]
        steps = sum(robot.statistics.steps for robot, _, _ in self.episodes)
        held = sum(robot.statistics.held for robot, _, _ in self.episodes)
        return {
            "jolt_median": round(float(np.median(jolts)), 2) if jolts else float("nan"),
            "jolt_p90": round(float(np.quantile(jolts, 0.9)), 2) if jolts else float("nan"),
            "pauses_percent": round(100 * held / steps, 1),
        }


class WithoutPrefix(PriorVLAPolicy):
    """A policy that is not told what will be executed anyway."""

    def predict(self, sessions: Any, observations: Any, prefixes: Any = None) -> NDArray[np.float32]:
        return super().predict(sessions, observations)


class StopAndGo:
    """A policy during whose predictions the robot is held: as long as they take, nothing happens."""

    def __init__(self, policy: PriorVLAPolicy, delay: int) -> None:
        self._policy, self._delay, self.embodiment = policy, delay, policy.embodiment
        self.held = self.steps = 0

    def new_session(self, seed: int) -> dict[str, Any]:
        return {"session": self._policy.new_session(seed), "wait": 0}

    def act(self, sessions: Sequence[dict[str, Any]], observations: Sequence[Observation]) -> NDArray[np.float32]:
        (own,), (observation,) = sessions, observations
        session = own["session"]
        self.steps += 1
        if own["wait"] == 0 and not session.queue and session.guard.started:
            chunk = self._policy.predict([session], [observation])[0]
            session.queue.extend(chunk[: self._policy.execute_steps])
            own["wait"] = self._delay
        if own["wait"]:
            own["wait"] -= 1
            self.held += 1
            return session.guard.hold()[None]
        return self._policy.act([session], [observation])


def measure(make: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Successes, trials, and what `Recording` tells, of a policy that is made once for all episodes."""
    policy = make()
    result = evaluate_policy(policy, options.tasks, trials=options.trials, seed=options.seed)
    successes, trials = result.count()
    told: dict[str, float] = {}
    if isinstance(policy, Recording):
        told = policy.told()
    elif isinstance(policy, StopAndGo):
        told = {"pauses_percent": round(100 * policy.held / policy.steps, 1)}
    return {"successes": successes, "trials": trials, **told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="runs/quickstart/policy-prior", help="folder or Hub id; knows the tasks")
    parser.add_argument("--tasks", nargs="+", default=["drawer-open", "door-open", "faucet-open"])
    parser.add_argument("--trials", type=int, default=8, help="episodes a task")
    parser.add_argument(
        "--delays", type=int, nargs="+", default=[2, 4, 7], help="control steps that a prediction takes"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the starts")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/realtime"))
    options = parser.parse_args()
    plain, unaware = (kind.from_pretrained(options.policy) for kind in (PriorVLAPolicy, WithoutPrefix))
    arms = {"no delay": lambda: plain}
    for delay in options.delays:
        arms[f"real-time, {delay} steps"] = lambda delay=delay: Recording(plain, delay)
        arms[f"naive switching, {delay} steps"] = lambda delay=delay: Recording(unaware, delay)
        arms[f"stop and go, {delay} steps"] = lambda delay=delay: StopAndGo(plain, delay)
    results = {}
    for name, make in arms.items():
        results[name] = row = measure(make, options)
        low, high = wilson_interval(row["successes"], row["trials"])
        told = ", ".join(f"{key.replace('_', ' ')} {row[key]:g}" for key in list(row)[2:])
        print(f"{name:<26}{row['successes']:>3} / {row['trials']}  [{low:.0%}, {high:.0%}]  {told}", flush=True)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    versions = installed_versions()
    print(f"{machine}; {', '.join(f'{name} {number}' for name, number in versions.items())}")
    options.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {key: getattr(options, key) for key in ("tasks", "trials", "delays", "seed")}
    report = {"kind": "realtime", **settings, "arms": results, "machine": machine, "versions": versions}
    (options.output_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
