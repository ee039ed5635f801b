"""What a slow model costs a robot, and what real-time chunking gives back: success, pauses, and jolts at seams.

    python benchmarks/realtime.py --policy runs/policy --tasks drawer-open door-open --output-dir runs/realtime

Closed loop in Meta-World, where a prediction takes so many control steps (`--delays`). The same policy, starts and
noise in every arm:

    no delay           the simulator waits for every chunk: what evaluations usually measure
    real-time          the next chunk is computed while the last is executed, and begins with what that will execute
    naive switching    the same, but the chunk does not know what is executed while it is computed
    stop and go        the robot is held while a chunk is computed

A jolt is how far an action lies from the one before, at the step at which a new chunk takes over, in multiples of the
median over all other steps of the episode; a pause is a step without an action. A seam's jerk is the largest third
difference of commanded positions (displacements added up, grippers left out) over four steps that lie on both sides of
the seam, in multiples of the median over four steps in a row without one. To stop and to go again are seams too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from report_file import made_with, write_report

from priorvla.configuration.embodiment import Embodiment
from priorvla.deployment.evaluation import evaluate_policy
from priorvla.deployment.policy import Observation, PriorVLAPolicy
from priorvla.deployment.realtime import RealTimePolicy
from priorvla.deployment.simulated_delay import DelayedPolicy, DelayedSession
from priorvla.hub_cards.intervals import wilson_interval


def seam_jerks(body: Embodiment, actions: Sequence[NDArray[np.float32]], seams: Sequence[int]) -> list[float]:
    """Of every seam of an episode, the step at which something new takes over; see above."""
    moving = [dim for dim in range(body.action_dim) if dim not in body.gripper_dims]
    delta = np.array([body.action_kinds[dim] == "delta" for dim in moving])
    commands = np.stack(actions).astype(np.float64)[:, moving]
    places = np.where(delta, commands.cumsum(axis=0), commands)
    jerk = np.linalg.norm(np.diff(places, n=3, axis=0), axis=1)  # of the steps i to i + 3
    across = [range(max(0, seam - 3), min(seam, len(jerk))) for seam in seams]
    elsewhere = np.delete(jerk, sorted({start for starts in across for start in starts}))
    usual = max(float(np.median(elsewhere[elsewhere > 0])), 1e-6) if (elsewhere > 0).any() else 1e-6  # held: none
    return [float(jerk[starts].max()) / usual for starts in across if len(starts)]


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median, and what the worst tenth begins at."""
    quantiles = {"median": 0.5, "p90": 0.9}
    return {
        f"{name}_{label}": round(float(np.quantile(values, share)), 2) if values else float("nan")
        for label, share in quantiles.items()
    }


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
        """Jolts and jerks at seams, and pauses in a hundred steps."""
        jolts: list[float] = []
        jerks: list[float] = []
        for _, actions, seams in self.episodes:
            change = np.linalg.norm(np.diff(np.stack(actions), axis=0), axis=1)
            elsewhere = np.delete(change, [seam - 1 for seam in seams])
            jolts += [change[seam - 1] / max(np.median(elsewhere), 1e-6) for seam in seams]
            jerks += seam_jerks(self.embodiment, actions, seams)
        steps = sum(robot.statistics.steps for robot, _, _ in self.episodes)
        held = sum(robot.statistics.held for robot, _, _ in self.episodes)
        return {
            **spread("jolt", jolts),
            **spread("jerk", jerks),
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
        self._stood = False
        self.episodes: list[tuple[list[NDArray[np.float32]], list[int]]] = []

    def new_session(self, seed: int) -> dict[str, Any]:
        self.episodes.append(([], []))
        return {"session": self._policy.new_session(seed), "wait": 0}

    def act(self, sessions: Sequence[dict[str, Any]], observations: Sequence[Observation]) -> NDArray[np.float32]:
        actions, seams = self.episodes[-1]
        held = self.held
        action = self._act(sessions, observations)
        stands = self.held > held
        if actions and stands != self._stood:
            seams.append(len(actions))
        self._stood = stands
        actions.append(action[0])
        return action

    def told(self) -> dict[str, float]:
        """Jerks where the robot stops and goes again, and pauses in a hundred steps."""
        jerks = [jerk for actions, seams in self.episodes for jerk in seam_jerks(self.embodiment, actions, seams)]
        return {**spread("jerk", jerks), "pauses_percent": round(100 * self.held / self.steps, 1)}

    def _act(self, sessions: Sequence[dict[str, Any]], observations: Sequence[Observation]) -> NDArray[np.float32]:
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
    if isinstance(policy, Recording | StopAndGo):
        told = policy.told()
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
    settings = {key: getattr(options, key) for key in ("tasks", "trials", "delays", "seed")}
    print(made_with(write_report(options.output_dir, {"kind": "realtime", **settings, "arms": results})))


if __name__ == "__main__":
    main()
